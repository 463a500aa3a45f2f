"""events: changes on their way to event sinks, and the dead letters that they did not take."""

from __future__ import annotations

import time
from typing import Any

import click

from dfud.cli.client import CliError, Session
from dfud.cli.resources import pass_session
from dfud.cli.show import Table, confirm, print_table, yes_option

OUTBOX = "/api/dfu/v1/outbox"
AGAIN_S = 2.0
ROUNDS_MAX = 300
sink_argument = click.argument("sink")
ids_argument = click.argument("ids", nargs=-1, metavar="[ID]...")


@click.group()
def events() -> None:
    """Changes of deployments and rollouts that are told to webhooks and other event sinks.

    \b
    dfuctl events status
    dfuctl events dead list
    dfuctl events dead retry webhook
    """


@events.command("status")
@pass_session
def events_status(session: Session) -> None:
    """Show what waits for each sink, what it did not take, and what it says."""
    found = session.request("GET", OUTBOX)
    if session.json:
        session.show(found)
        return
    if not found:
        session.say("No event sink takes changes: see [events.webhook] and [events.log].")
        return
    rows = Table("SINK", "WAITING", "DEAD", "DELIVERED", "FAILED ATTEMPTS", "LOST", "PROBLEM")
    for one in found:
        rows.add_row(
            one["sink"],
            one["waiting"],
            one["dead"],
            one["delivered"],
            one["failedAttempts"],
            one["lost"],
            one["problem"],
        )
    print_table(rows)


@events.group("dead")
def events_dead() -> None:
    """Dead letters: what a sink refused again and again, or did not take for too long."""


@events_dead.command("list")
@click.argument("sink", required=False)
@pass_session
def dead_list(session: Session, sink: str | None) -> None:
    """List dead letters of SINK, or of all, the oldest first."""
    found = session.request("GET", f"{OUTBOX}/dead", params={"sink": sink} if sink else {})
    if session.json:
        session.show(found)
        return
    rows = Table("SINK", "ID", "TIME", "APP", "SUBJECT", "EVENT", "ATTEMPTS", "PROBLEM")
    for one in found:
        # One whose record cannot be read has its id and problem only.
        what = f"{one.get('kind', '')} {one.get('data', {}).get('event', '')}".strip()
        shown = [one.get(key, "") for key in ("time", "app", "subject")]
        rows.add_row(one["sink"], one["id"], *shown, what, one.get("attempts", ""), one["problem"])
    print_table(rows)


@events_dead.command("retry")
@sink_argument
@ids_argument
@pass_session
def dead_retry(session: Session, sink: str, ids: tuple[str, ...]) -> None:
    """Tell SINK dead letters again: those of these IDs, or all. They come behind what waits, so order is lost."""
    done, rounds = 0, 0
    found: dict[str, Any] = {"left": 1}
    while found["left"] and rounds < ROUNDS_MAX:
        if rounds:
            time.sleep(AGAIN_S)  # no more than may wait are taken at once
        found = session.request("POST", f"{OUTBOX}/dead/retry", json={"sink": sink, "ids": list(ids) or None})
        done += found["number"]
        rounds += 1
        if ids or not found["number"]:
            break
    session.done(f"{done} dead letters are told to {sink} again.", **{**found, "number": done})


@events_dead.command("drop")
@sink_argument
@ids_argument
@yes_option
@pass_session
def dead_drop(session: Session, sink: str, ids: tuple[str, ...], yes: bool) -> None:
    """Forget dead letters of SINK: those of these IDs, or all."""
    confirm(f"Forget {len(ids) or 'all'} dead letters of {sink}?", yes)
    found = session.request("POST", f"{OUTBOX}/dead/drop", json={"sink": sink, "ids": list(ids) or None})
    if not found["number"] and ids:
        raise CliError("nothing was forgotten")
    session.done(f"{found['number']} dead letters of {sink} are forgotten.", **found)
