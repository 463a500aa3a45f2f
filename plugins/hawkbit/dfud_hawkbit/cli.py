"""`dfuctl hawkbit`: how dfud and hawkBit agree. Found by the entry point group `dfuctl`."""

from __future__ import annotations

from typing import Any

import click

BASE = "/api/hawkbit/v1"


@click.group()
def hawkbit() -> None:
    """dfud and the hawkBit behind it."""


@hawkbit.command()
@click.pass_obj
def status(session: Any) -> None:
    """Say whether hawkBit answers, what has yet to be told to it, and what it refused."""
    found = session.request("GET", f"{BASE}/status")
    if session.json:
        session.show(found)
        return
    answered = f"answered last at {found['answered']}" if found["answered"] else "has not been asked yet"
    session.say(f"hawkBit at {found['url']}: {found['away'] or answered}")
    if found["away"]:
        session.say(answered)
    session.say(f"waiting to be told: {found['waiting']['devices']} devices, {found['waiting']['firmware']} firmware")
    for what, problem in found["problems"].items():
        session.say(f"{what}: {problem}")


@hawkbit.command()
@click.option("--dry-run", is_flag=True, help="Only show what differs.")
@click.pass_obj
def reconcile(session: Any, dry_run: bool) -> None:
    """Compare what dfud wants, what hawkBit wants and what each device runs; mend what can be mended.

    Exit code 1: something that was to be mended still differs.
    """
    query = "?dryRun=true" if dry_run else ""
    found = session.request("POST", f"{BASE}/apps/{session.app}/reconcile{query}")
    if session.json:
        session.show(found)
    else:
        _show(session, found)
    if found["failed"]:
        click.get_current_context().exit(1)


def _show(session: Any, found: Any) -> None:
    for row in found["rows"]:
        versions = f"dfud {row['desired'] or '-'}  hawkBit {row['hawkbit'] or '-'}  device {row['actual'] or '-'}"
        session.say(f"{row['device']:24} {row['finding']:22} {versions}  {row['result'] or row['action']}")
    under_way = sum(row["result"] == "under way" for row in found["rows"])
    session.say(
        f"{found['devices']} devices, {found['inSync']} in sync, {len(found['rows'])} differ; "
        f"{found['mended']} mended, {under_way} under way, {found['failed']} still differ",
        err=True,
    )


@hawkbit.command("take-over")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@click.pass_obj
def take_over(session: Any, yes: bool) -> None:
    """Take over the app's targets that another dfud speaks for, for instance one whose records are lost.

    That other dfud leaves them alone from its next full list on (resync_s). Needs the role admin.
    """
    if not yes:
        click.confirm(f"Take over the targets of app {session.app} from the dfud that has them?", abort=True)
    found = session.request("POST", f"{BASE}/apps/{session.app}/take-over")
    session.done(f"{len(found['targets'])} targets are taken over", **found)


@hawkbit.command()
@click.argument("device")
@click.option("--deny", is_flag=True, help="Deny instead; hawkBit then goes on waiting until it is cancelled there.")
@click.pass_obj
def confirm(session: Any, device: str, deny: bool) -> None:
    """Confirm for a device what waits for it in hawkBit."""
    query = "?deny=true" if deny else ""
    found = session.request("POST", session.path(f"{BASE}/apps", session.app, "confirm", device) + query)
    session.done(f"{found['version']} is {found['confirmation']} for {device}", **found)
