"""device: the devices of an app."""

from __future__ import annotations

from itertools import islice
from typing import Any

import click

from dfud.cli.bulk import device_count, device_export, device_import
from dfud.cli.client import Session
from dfud.cli.resources import delete_resource, labels_of, new_labels, pass_session, shown_labels, tell_deleted
from dfud.cli.show import Table, confirm, print_table, yes_option
from dfud.cli.state import state_text
from dfud.model.names import check_labels, check_name


@click.group()
def device() -> None:
    """Devices of an app."""


@device.command("create")
@click.argument("name")
@click.option("-l", "--label", "labels", multiple=True, help="KEY=VALUE; may be repeated.")
@click.option("--no-secret", is_flag=True, help="Make no secret; for devices with certificates.")
@pass_session
def device_create(session: Session, name: str, labels: tuple[str, ...], no_secret: bool) -> None:
    """Create the device NAME and show its secret once."""
    check_name("device", name)
    body = {"metadata": {"name": name, "application": session.app, "labels": new_labels(labels)}}
    session.request("POST", session.registry("devices"), json=body)
    if no_secret:
        session.done(f"Device {name} created.", device=name)
        return
    _new_secret(session, name, revoke=False)


@device.command("secret")
@click.argument("name")
@click.option("--revoke", is_flag=True, help="The old secret ends at once, not with the next rotation.")
@pass_session
def device_secret(session: Session, name: str, revoke: bool) -> None:
    """Give the device another secret. The old one goes on working, so that the device can be told."""
    _new_secret(session, name, revoke=revoke)


@device.command("psk")
@click.argument("name")
@pass_session
def device_psk(session: Session, name: str) -> None:
    """Give the device another pre-shared key, for CoAP with OSCORE, and show it once. The old one ends at once."""
    found = session.request("POST", session.api("psk", name))
    if session.json:
        session.show({"device": name, "psk": found["psk"]})
        return
    session.say(f"The pre-shared key of device {name}, 16 bytes in hexadecimal (shown once):", err=True)
    session.say(found["psk"])


def _new_secret(session: Session, name: str, *, revoke: bool) -> None:
    found = session.request("POST", session.api("secret", name), params={"revoke": "true"} if revoke else {})
    if session.json:
        session.show({"device": name, "secret": found["secret"]})
        return
    session.say(f"The secret of device {name} (shown once):", err=True)
    session.say(found["secret"])


@device.command("list")
@click.option("-l", "--labels", default="", help="Label selector, such as site=attic,ring in (1,2).")
@click.option("--limit", type=click.IntRange(1), help="At most so many; all of them if not given.")
@click.option("--offset", default=0, show_default=True, type=click.IntRange(0), help="Leave out the first ones.")
@pass_session
def device_list(session: Session, labels: str, limit: int | None, offset: int) -> None:
    """List devices with what they run and what they should run."""
    found = list(islice(session.devices(labels), offset, offset + limit if limit else None))
    if session.json:
        session.show(found)
        return
    rows = Table("NAME", "CURRENT", "TARGET", "STATE", "LABELS", "SEEN")
    for one in found:
        f = one["status"]["firmware"]
        rows.add_row(
            one["metadata"]["name"],
            _both(f, "current"),
            _both(f, "target"),
            state_text(f),
            shown_labels(one["metadata"]),
            f.get("actual", {}).get("seen", ""),
        )
    print_table(rows)


def _both(firmware: dict[str, Any], key: str) -> str:
    """Return what runs or is wanted of both kinds: `1.3`, `1.3 app 3.2`."""
    app = firmware.get("app", {}).get(key)
    return " ".join([*([firmware[key]] if firmware[key] else ()), *([f"app {app}"] if app else ())])


@device.command("show")
@click.argument("name")
@pass_session
def device_show(session: Session, name: str) -> None:
    """Show the device NAME as JSON."""
    session.show(session.request("GET", session.registry("devices", name)))


@device.command("label")
@click.argument("name")
@click.argument("labels", nargs=-1, required=True)
@pass_session
def device_label(session: Session, name: str, labels: tuple[str, ...]) -> None:
    """Set labels KEY=VALUE of a device; KEY- removes one."""
    found = session.request("GET", session.registry("devices", name))
    held = found["metadata"].setdefault("labels", {})
    before = dict(held)
    for label in labels:
        if label.endswith("-") and "=" not in label:
            held.pop(label[:-1], None)
        else:
            held.update(labels_of((label,)))
    check_labels(held, before)
    session.request("PUT", session.registry("devices", name), json=found)
    session.done(f"Device {name} labelled.", device=name, labels=held)


@device.command("delete")
@click.argument("name")
@yes_option
@pass_session
def device_delete(session: Session, name: str, yes: bool) -> None:
    """Delete the device NAME."""
    confirm(f"Delete device {name} of app {session.app}?", yes)
    tell_deleted(session, "Device", name, delete_resource(session, session.registry("devices", name), name))


for _command in (device_import, device_export, device_count):
    device.add_command(_command)
