"""fleet, attention: a fleet in numbers, drawn; and the deployments that stand still."""

from __future__ import annotations

from typing import Any

import click

from dfud.cli.client import Session
from dfud.cli.resources import pass_session
from dfud.cli.show import Table, print_table, say_lines

BAR = 22  # with the line of POINTS it leaves room for a name in 80 columns
BLOCKS = " ▏▎▍▌▋▊▉█"
SPARKS = "▁▂▃▄▅▆▇█"
POINTS = 24
LINES_MAX = 12


@click.command()
@click.option(
    "--hours", type=click.IntRange(1, 19200), default=168, show_default=True, help="How far adoption goes back."
)
@click.option("--crash", "fingerprint", help="Show one crash of the list whole, with what the first device said.")
@pass_session
def fleet(session: Session, hours: int, fingerprint: str | None) -> None:
    """Draw the fleet of the app: what runs, where updates stand, why they failed, who was heard of, which crashes there are."""
    if fingerprint:
        found = session.request("GET", session.api("fleet", "crashes", fingerprint))
        if session.json:
            session.show(found)
        else:
            _say_crash(session, found)
        return
    params = {"hours": hours, "points": POINTS}
    found = session.request("GET", session.api("fleet"), params=params)
    if session.json:
        session.show(found)
        return
    seen = found["seen"]
    session.say(
        f"{_count(found['devices'], 'device')}; heard of within the hour {seen['hour']}, the day {seen['day']}, "
        f"the week {seen['week']}; never {found['neverReported']}"
    )
    for risk in found["atRisk"]:
        session.say(
            f"At risk: {_count(risk['devices'], 'device')} on {risk['version']}, which is recalled: {risk['reason']}"
        )
    history = {version: [p["versions"].get(version, 0) for p in found["adoption"]] for version in found["versions"]}
    for title, numbers in (
        ("VERSION", found["versions"]),
        ("APP", found.get("apps", {})),
        ("UPDATE", found["states"]),
        ("FAILED BY", found["codes"]),
    ):
        if numbers:
            print_table(_bars(title, numbers, history if title == "VERSION" else {}, hours))
    if found["crashes"]:
        rows = Table("CRASH", "DEVICES", "SINCE", "AMONG THEM", "WHAT")
        for crash in found["crashes"]:
            among = ", ".join(crash.get("among", [])[:3])
            rows.add_row(
                crash["fingerprint"], crash["devices"], crash.get("sinceVersion", ""), among, crash.get("title", "")
            )
        print_table(rows)
        session.say("One of them whole: dfuctl fleet --crash FINGERPRINT")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _bars(title: str, numbers: dict[str, int], history: dict[str, list[int]], hours: int) -> Table:
    """Return a bar for each number and, where there is a history, a line of it."""
    table = Table(title, "DEVICES", "", *([f"LAST {hours} H"] if history else []))
    shown = dict(list(numbers.items())[:LINES_MAX])
    if rest := sum(list(numbers.values())[LINES_MAX:]):
        shown["(others)"] = rest
    whole = max(sum(numbers.values()), 1)
    for name, number in shown.items():
        line = [spark(history.get(name, []))] if history else []
        table.add_row(name, number, f"{bar(number / whole)} {number / whole:.0%}", *line)
    return table


def bar(share: float, width: int = BAR) -> str:
    """Return a bar of `width` characters, drawn to an eighth of one; what is above 0 shows."""
    eighths = max(round(max(0.0, min(share, 1.0)) * width * 8), 1 if share > 0 else 0)
    return (BLOCKS[8] * (eighths // 8) + (BLOCKS[eighths % 8] if eighths % 8 else "")).ljust(width)


def spark(values: list[int]) -> str:
    """Return a line of one character a value, from 0 to the highest."""
    most = max(values, default=0)
    return "".join(SPARKS[round(value * (len(SPARKS) - 1) / most)] if most else SPARKS[0] for value in values)


def _say_crash(session: Session, found: dict[str, Any]) -> None:
    session.say(f"{found.get('title', '')} ({found['fingerprint']})")
    versions = ", ".join(found.get("versions", []))
    session.say(f"{_count(found['devices'], 'device')} now; first seen {found.get('since', '')} in {versions}")
    if found.get("among"):
        session.say(f"among them: {', '.join(found['among'])}")
    if found.get("text"):
        session.say("The first of them said:")
        say_lines(found["text"], "  ")
    if found.get("record"):
        session.say(f"Its record of registers, hexadecimal: {found['record']}")
    for link in found.get("records", [])[:3]:
        session.say(f"raw: {link}")


@click.command()
@pass_session
def attention(session: Session) -> None:
    """List the updates under way that have stood still for too long, by what they wait for."""
    found = session.request("GET", session.api("attention"))
    if session.json:
        session.show(found)
        return
    number = sum(cause["count"] for cause in found["causes"].values())
    session.say(
        f"{_count(found['open'], 'update')} under way; {number} have not moved for {found['afterS'] / 3600:g} hours."
    )
    rows = Table("CAUSE", "DEVICES", "DEVICE", "VERSION", "STATE", "SINCE", "WHAT")
    for cause, group in sorted(found["causes"].items(), key=lambda pair: -pair[1]["count"]):
        for place, one in enumerate(group["devices"][:LINES_MAX]):
            head = (cause, group["count"]) if not place else ("", "")
            where = f"{one['state']}, {one['at']}" if one.get("at") else one["state"]
            rows.add_row(*head, one["device"], one["version"], where, one["since"], one.get("sentence", ""))
    if rows.rows:
        print_table(rows)
