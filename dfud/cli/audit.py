"""audit: who changed what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from dfud.cli.client import API, PAGE, Session
from dfud.cli.resources import pass_session
from dfud.cli.show import Table, print_table


@click.command()
@click.option(
    "--after", default="", help="Key of the last entry that is known already: go on from there, oldest first."
)
@click.option("--of-app", is_flag=True, help="Only what concerns the app of --app; its admins may read that.")
@click.option("--by", default="", help="Only what this user did.")
@click.option("--what", default="", help="Only this, such as publish, enrol or rotate-secret.")
@click.option("--target", default="", help="Only what was done to this, such as lamps/lamp1.")
@click.option(
    "--since", default="", help="From this date or time (UTC) on, such as 2026-11-25 or 2026-11-25T12:00:00Z."
)
@click.option("--until", default="", help="Before this date or time.")
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1), help="At most so many: the newest.")
@pass_session
def audit(session: Session, /, of_app: bool, limit: int, **filters: str) -> None:
    """Show who changed what: the newest entries, the newest last."""
    params = {key: value for key, value in filters.items() if value} | ({"app": session.app} if of_app else {})
    found: list[dict[str, Any]] = []
    if params.get("after"):
        for entry in _entries(session, params):
            found.append(entry)
            if len(found) == limit:
                break
    else:
        found = _newest(session, params, limit)
    if session.json:
        session.show(found)
        return
    rows = Table("AT", "BY", "WHAT", "TARGET", "DETAIL")
    for one in found:
        rows.add_row(one["at"], one["by"], one["what"], one["target"], one["detail"])
    print_table(rows)


def _newest(session: Session, params: dict[str, str], limit: int) -> list[dict[str, Any]]:
    """Return the newest entries, the newest last."""
    found: list[dict[str, Any]] = []
    before = ""
    while len(found) < limit:
        asked = min(PAGE, limit - len(found))
        at = {"before": before} if before else {}
        page = session.request("GET", f"{API}/audit", params={**params, **at, "order": "newest", "limit": asked})
        found += page
        if len(page) < asked:
            break
        before = page[-1]["key"]
    return found[::-1]


def _entries(session: Session, params: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield all entries behind the one that params["after"] names, oldest first."""
    after = params["after"]
    while page := session.request("GET", f"{API}/audit", params={**params, "after": after, "limit": PAGE}):
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1]["key"]
