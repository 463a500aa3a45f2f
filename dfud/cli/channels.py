"""channel: what a group of devices runs by a rule."""

from __future__ import annotations

import re
from typing import Any

import click

from dfud.cli.client import CliError, Session
from dfud.cli.resources import pass_session, wanted_text
from dfud.cli.show import Table, print_table
from dfud.model.names import check_name

_CHANNEL = re.compile(r"channel=([^,]+)")  # a rule's selector that `channel set` writes


@click.group()
def channel() -> None:
    """Channels: devices labelled `channel=NAME` run the version that the channel has."""


@channel.command("list")
@pass_session
def channel_list(session: Session) -> None:
    """List the app's rules, in the order in which they count: a device runs what the first one says that means it."""
    rules: list[dict[str, Any]] = session.request("GET", session.registry())["spec"].get("rules", [])
    if session.json:
        session.show(rules)
        return
    rows = Table("CHANNEL", "FIRMWARE", "SELECTOR")
    for rule in rules:
        selector, wanted = str(rule.get("selector", "")), rule.get("firmware") or {}
        found = _CHANNEL.fullmatch(selector)
        held = " (hold)" if wanted.get("hold") else ""
        rows.add_row(found[1] if found else "", f"{wanted_text(wanted)}{held}", selector)
    print_table(rows)


@channel.command("set")
@click.argument("name")
@click.argument("version", required=False)
@click.option(
    "--app", "app_version", metavar="VERSION", help="The app firmware, alone or beside the VERSION of the system."
)
@pass_session
def channel_set(session: Session, name: str, version: str | None, app_version: str | None) -> None:
    """Have the devices of channel NAME run VERSION: a rule of the app's `spec.rules`."""
    check_name("label value", name)
    wanted = {key: text for key, text in (("version", version), ("app", app_version)) if text}
    if not wanted:
        raise CliError("which firmware? give its VERSION behind the name, or --app VERSION")
    for one in wanted.values():
        found = session.request("GET", session.api("firmware", one))
        if "recalled" in found:
            raise CliError(f"firmware {one} is recalled: {found['recalled']['reason']}")
    rules = _rules(session, lambda others: [{"selector": f"channel={name}", "firmware": wanted}, *others], name)
    session.done(f"Channel {name} runs {wanted_text(wanted)}.", rules=rules)


@channel.command("remove")
@click.argument("name")
@pass_session
def channel_remove(session: Session, name: str) -> None:
    """End channel NAME: its devices run what other rules or the app say."""
    app = session.request("GET", session.registry())
    if not any(rule.get("selector") == f"channel={name}" for rule in app["spec"].get("rules", [])):
        raise CliError(f"no channel {name} in app {session.app}")
    rules = _rules(session, lambda others: others, name)
    session.done(f"Channel {name} removed.", rules=rules)


def _rules(session: Session, change: Any, name: str) -> list[Any]:
    """Change the app's rules but for the channel's own, and return them; refused if the app changed meanwhile."""
    app = session.request("GET", session.registry())
    rules = app["spec"].get("rules", [])
    app["spec"]["rules"] = change([r for r in rules if r.get("selector") != f"channel={name}"])
    app.pop("status", None)
    session.request("PUT", session.registry(), json=app)
    return list(app["spec"]["rules"])
