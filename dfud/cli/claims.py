"""claim: codes with which new devices make themselves known."""

from __future__ import annotations

from typing import Any

import click

from dfud.cli.client import Session
from dfud.cli.resources import new_labels, pass_session
from dfud.cli.show import Table, confirm, print_table, yes_option
from dfud.model.names import check_name


@click.group()
def claim() -> None:
    """Claim codes: with one, a new device makes itself known at its first contact."""


@claim.command("create")
@click.option("--uses", default=1, show_default=True, type=click.IntRange(1, 1000), help="For how many devices.")
@click.option("--hours", default=24, show_default=True, type=click.IntRange(1, 8760), help="How long it is good.")
@click.option("--device", "device_name", default="", help="The only device that may use it.")
@click.option("-l", "--label", "labels", multiple=True, help="KEY=VALUE that its devices get; may be repeated.")
@pass_session
def claim_create(session: Session, uses: int, hours: int, device_name: str, labels: tuple[str, ...]) -> None:
    """Make a claim code and show it once."""
    if device_name:
        check_name("device", device_name)
    body: dict[str, Any] = {"uses": uses, "hours": hours, "device": device_name, "labels": new_labels(labels)}
    found = session.request("POST", session.api("claims"), json=body)
    if session.json:
        session.show(found)
        return
    session.say("The claim code (shown once):", err=True)
    session.say(found["code"])


@claim.command("list")
@pass_session
def claim_list(session: Session) -> None:
    """List the app's claims, without what is secret in them."""
    found = session.request("GET", session.api("claims"))
    if session.json:
        session.show(found)
        return
    rows = Table("ID", "LEFT", "EXPIRES", "DEVICE", "LABELS", "BY")
    for one in found:
        labels = ",".join(f"{key}={value}" for key, value in sorted(one.get("labels", {}).items()))
        left = f"{one['left']} of {one['uses']}"
        rows.add_row(one["id"], left, one["expires"], one.get("device", ""), labels, one["by"])
    print_table(rows)


@claim.command("delete")
@click.argument("claim_id", metavar="ID")
@yes_option
@pass_session
def claim_delete(session: Session, claim_id: str, yes: bool) -> None:
    """End the claim ID. Devices that have used it stay."""
    confirm(f"End claim {claim_id} of app {session.app}?", yes)
    session.request("DELETE", session.api("claims", claim_id))
    session.done(f"Claim {claim_id} ended.", claim=claim_id)
