"""Group updates: durable jobs of the registry, which go on whether somebody watches or not."""

from __future__ import annotations

import time
from typing import Any

import click

from dfud.cli.client import CliError, NobodyError, Session
from dfud.cli.resources import pass_session, wanted_text
from dfud.cli.show import Table, print_table, progress_bar, say

LOOK_S, LOOK_MAX_S = 0.1, 2.0
no_wait_option = click.option(
    "--no-wait", is_flag=True, help="With -l: return as soon as it is accepted; `dfuctl job list` shows how far it is."
)


def start(
    session: Session, selector: str, firmware: dict[str, Any] | None, *, all_at_once: bool = False
) -> dict[str, Any]:
    """Ask for a group update; return the job as accepted. Raises CliError, NobodyError if no device matches."""
    body: dict[str, Any] = {"firmware": firmware, "selector": selector}
    body |= {"allAtOnce": True} if all_at_once else {}
    try:
        job: dict[str, Any] = session.request("POST", session.api("update"), json=body)
    except CliError as error:
        if error.kind == "NobodyMatches":
            raise NobodyError(session.app, selector) from None
        raise
    if not job["matched"]:
        raise NobodyError(session.app, selector)  # a registry that keeps a job of it
    return job


def finish(session: Session, job: dict[str, Any]) -> dict[str, Any]:
    """Show a bar until the job has ended; return it. Raises CliError if it did not end well.

    A registry that is away for a while is waited for; who interrupts is told that the job goes on.
    """
    pause_s = LOOK_S
    try:
        with progress_bar(f"group update {job['job']}", total=job["matched"]) as progress:
            while job["state"] == "running":
                time.sleep(pause_s)
                pause_s = min(LOOK_MAX_S, pause_s * 1.5)
                try:
                    job = session.request("GET", session.api("jobs", job["job"]))
                except CliError as error:
                    if not error.transient:
                        raise
                    say(f"{error}; the job goes on when it is back, trying again", err=True)
                progress(job["changed"] + job["unchanged"], None)
    except KeyboardInterrupt:
        say(f"Group update {job['job']} goes on: `dfuctl job cancel {job['job']}` ends it.", err=True)
        raise
    if job["state"] != "done":
        ended = "failed" if job["state"] == "failed" else f"was {job['state']}"
        why = f": {job['problem']}" if job.get("problem") else ""
        done = f"{job['changed']} of {job['matched']} devices were changed"
        raise CliError(f"group update {job['job']} {ended}{why}; {done}")
    return job


def line(job: dict[str, Any]) -> str:
    """Return in a few words what a job did."""
    return f"{job['changed']} changed, {job['unchanged']} unchanged"


def _wanted(job: dict[str, Any]) -> str:
    firmware = job["firmware"]
    return "(none of their own)" if firmware is None else wanted_text(firmware) or "?"


@click.group()
def job() -> None:
    """Updates of many devices at once, as `dfuctl update -l` and `dfuctl follow -l` ask for them.

    The registry does them a page at a time and goes on after a restart; devices that are deleted meanwhile are passed over.
    """


@job.command("list")
@pass_session
def list_jobs(session: Session) -> None:
    """List the app's group updates, newest first."""
    found = session.request("GET", session.api("jobs"))
    if session.json:
        session.show(found)
        return
    rows = Table("JOB", "STATE", "SELECTOR", "FIRMWARE", "MATCHED", "CHANGED", "UNCHANGED", "BY", "CREATED")
    for one in found:
        counts = (one["matched"], one["changed"], one["unchanged"])
        rows.add_row(one["job"], one["state"], one["selector"], _wanted(one), *counts, one["by"], one["created"])
    print_table(rows)


@job.command("show")
@click.argument("job_id", metavar="JOB")
@click.option("-w", "--watch", is_flag=True, help="Stay until it has ended.")
@pass_session
def show_job(session: Session, job_id: str, watch: bool) -> None:
    """Show how far a group update has come."""
    found = session.request("GET", session.api("jobs", job_id))
    if watch:
        found = finish(session, found)
    if session.json:
        session.show(found)
        return
    say(
        f"{found['selector']}: firmware {_wanted(found)}, {found['state']}, asked for by {found['by']}, {found['created']}"
    )
    say(f"{found['matched']} devices: {line(found)}.")
    for version, count in sorted(found["replaced"].items(), key=lambda pair: -pair[1]):
        say(f"  {count} asked for {version} before")
    if found.get("problem"):
        say(f"It does not go on: {found['problem']}" if found["state"] == "running" else found["problem"])


@job.command("cancel")
@click.argument("job_id", metavar="JOB")
@pass_session
def cancel_job(session: Session, job_id: str) -> None:
    """End a group update. Devices that it has changed keep what it gave them."""
    found = session.request("POST", session.api("jobs", job_id, "cancel"))
    session.done(f"Group update {found['job']} is cancelled: {line(found)} before that.", **found)
