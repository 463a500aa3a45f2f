"""firmware recall, unrecall, ways: who may get a version, and from which one."""

from __future__ import annotations

from typing import Any

import click

from dfud.cli.client import CliError, Session
from dfud.cli.firmware import firmware
from dfud.cli.resources import pass_session
from dfud.cli.show import confirm, yes_option
from dfud.model.firmware import SEQUENCE_MAX


@firmware.command("recall")
@click.argument("version")
@click.option("--reason", required=True, help="Why; devices, rollouts and users are told.")
@yes_option
@pass_session
def firmware_recall(session: Session, version: str, reason: str, yes: bool) -> None:
    """Recall a firmware: no device gets it any longer, and rollouts of it pause. Devices that run it keep it."""
    confirm(f"Recall firmware {version} of app {session.app}?", yes)
    found = session.request("POST", session.api("firmware", version, "recall"), json={"reason": reason})
    session.done(f"Firmware {version} is recalled: {reason}", **found)


@firmware.command("unrecall")
@click.argument("version")
@pass_session
def firmware_unrecall(session: Session, version: str) -> None:
    """Take the recall of a firmware back. Rollouts that it paused are resumed by hand."""
    found = session.request("POST", session.api("firmware", version, "unrecall"), json={})
    session.done(f"Firmware {version} is no longer recalled.", **found)


@firmware.command("ways")
@click.argument("version")
@click.option("--from", "from_", metavar="VERSION", help="Only this version and newer ones may go to it directly.")
@click.option("--to", metavar="VERSION", help="Only this version and older ones may go to it directly.")
@click.option("--any", "any_", is_flag=True, help="Every version may go to it directly.")
@click.option("--stop/--no-stop", default=None, help="Whether no device may skip it on the way to a newer version.")
@pass_session
def firmware_ways(
    session: Session, version: str, from_: str | None, to: str | None, any_: bool, stop: bool | None
) -> None:
    """Say which versions may go to VERSION directly. The others are led over versions between, one after the other.

    VERSION of --from and --to is one that is published, or #N for sequence N.
    """
    if any_ and (from_ is not None or to is not None):
        raise CliError("--any: leave it out, or leave out --from and --to")
    path = session.api("firmware", version)
    before = session.request("GET", path)
    requires: dict[str, Any] | None = before.get("requires")
    if any_:
        requires = None
    elif from_ is not None or to is not None:
        requires = {key: _bound(value) for key, value in (("from", from_), ("to", to)) if value is not None}
    body = {"requires": requires, "stop": before.get("stop", False) if stop is None else stop}
    found = session.request("PUT", f"{path}/ways", json=body)
    now = found.get("requires")
    told = _range(now["from"], now["to"]) if now else "takes every version"
    skipped = "may not be skipped" if found.get("stop") else "may be skipped"
    session.done(f"Firmware {version} {told} directly, and {skipped}.", **found)


def _range(low: int, high: int) -> str:
    upper = "and newer" if high == SEQUENCE_MAX else f"to {high}"
    return f"takes sequences {low} {upper}"


def _bound(text: str) -> str | int:
    """Read a version, or #N for a sequence."""
    return int(text[1:]) if text.startswith("#") and text[1:].isascii() and text[1:].isdigit() else text
