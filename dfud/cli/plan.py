"""What `dfuctl rollout plan` and `show` print: a forecast, and the first devices that failed with what they said."""

from __future__ import annotations

import json
import time
from typing import Any

from dfud.cli.client import CliError, Session, checked
from dfud.cli.show import Table, print_table, progress_bar, say_lines

FAILURES_SHOWN = 3
WAIT_S = 2.0
SHOWN_MAX = 12


def say_failures(session: Session, found: dict[str, Any]) -> None:
    """Say which devices failed first, and what each kind of failure said, whole."""
    seen: set[str] = set()
    failures = found["status"].get("failures", [])
    for one in failures:
        kind = one.get("fingerprint", one["device"])
        if kind in seen or len(seen) >= FAILURES_SHOWN:
            continue
        seen.add(kind)
        alike = sum(other.get("fingerprint") == kind for other in failures)
        more = f" and {alike - 1} more" if alike > 1 else ""
        session.say(f"{one['device']}{more}: {one['state']} in wave {one['wave']}, {one['code']}: {one['title']}")
        say_lines(one["text"], "  ")


def forecast(session: Session, method: str, path: str, body: dict[str, Any] | None, days: int) -> dict[str, Any]:
    """Ask for a forecast, with a bar while the fleet is read. Raises CliError."""
    params: dict[str, str | int] = {"progress": "true", "silentDays": days}
    found: dict[str, Any] = {}
    with session.client(timeout_s=None) as client, progress_bar("reading the fleet") as progress:
        with client.stream(method, path, params=params, json=body) as answer:
            if not answer.is_success:
                answer.read()
                checked(answer)
            for line in answer.iter_lines():
                if line.strip():
                    found = json.loads(line)
                if "of" in found:
                    progress(found["read"], found["of"])
    if "error" in found:
        raise CliError(found["error"])
    if "plan" not in found:
        raise CliError("the registry's answer ended before it was whole; try again", transient=True)
    plan: dict[str, Any] = found["plan"]
    return plan


def watch_plan(session: Session, method: str, path: str, body: dict[str, Any] | None, days: int, wait_s: float) -> None:
    """Show a forecast, once its packages are made or `wait_s` is over."""
    until = time.monotonic() + wait_s
    found = forecast(session, method, path, body, days)
    while found["bytes"]["preparing"] and (left_s := until - time.monotonic()) > 0:
        number = found["bytes"]["packages"]
        with progress_bar("making packages", total=number) as progress:
            progress(number - found["bytes"]["preparing"], number)
            time.sleep(min(WAIT_S, left_s))
        found = forecast(session, method, path, body, days)
    if session.json:
        session.show(found)
    else:
        say_plan(session, found)


def _brought(found: dict[str, Any]) -> str:
    app = [f"app {found['app']}"] if "app" in found else []
    return " with ".join([*([found["firmware"]] if found["firmware"] else ()), *app])


def say_plan(session: Session, found: dict[str, Any]) -> None:
    devices, weight, takes = found["devices"], found["bytes"], found["time"]
    for problem in found["problems"]:
        session.say(f"It would be refused: {problem}")
    session.say(
        f"{devices['matching']} devices match: {devices['told']} would be told, {devices['inSync']} run "
        f"{_brought(found)} already, {devices['refused']} would not get it, {devices['later']} later"
    )
    if devices["severalSteps"]:
        session.say(f"{devices['severalSteps']} of them are led there over other versions.")
    rows = Table("RUNNING", "HARDWARE", "DEVICES")
    for one in found["running"][:SHOWN_MAX]:
        rows.add_row(one["version"] or "(never reported)", one["hardware"], one["devices"])
    print_table(rows)
    if found["codes"]:
        rows = Table("NOT TOLD", "DEVICES", "SUCH AS", "WHY")
        for code, group in found["codes"].items():
            later = " (later)" if group["later"] else ""
            rows.add_row(f"{code}{later}", group["count"], ", ".join(group["devices"][:3]), group["sentence"])
        print_table(rows)
    packages = f"{weight['packages']} {'package' if weight['packages'] == 1 else 'packages'}"
    about = "about " if weight["estimate"] else ""
    session.say(f"On the air: {about}{size(weight['total'])} in {packages}")
    if weight["bases"]:
        rows = Table("FROM", "TO", "HARDWARE", "DEVICES", "PACKAGE", "IN ALL", "")
        for one in weight["bases"][:SHOWN_MAX]:
            state = one.get("problem") or ("" if not one["estimate"] else _unmade(one))
            rows.add_row(
                one["from"] or "(anything)",
                one["to"],
                one["hardware"],
                one["devices"],
                size(one["package"]),
                size(one["bytes"]),
                state,
            )
        print_table(rows)
    measured = "as its devices took till now" if takes["updateMeasured"] else "taken as a guess"
    session.say(
        f"It takes about {duration(takes['seconds'])}, till {takes['ends']}: devices ask every {takes['pollS']:g} s, "
        f"an update takes {takes['updateS']:g} s ({measured})"
    )
    rows = Table("WAVE", "DEVICES", "BEGINS", "ENDS", "WHAT IT WAITS FOR")
    for one in takes["waves"]:
        limit = f"{one['limit']}, then an approval" if one.get("approval") else one["limit"]
        rows.add_row(one["wave"], one["devices"], one["begins"], one["ends"], limit)
    print_table(rows)
    if late := takes.get("tooLate"):
        session.say(f"{late}.")


def _unmade(one: dict[str, Any]) -> str:
    return "estimate, being made" if one.get("preparing") else "estimate"


def size(number: int) -> str:
    """Return bytes as people read them."""
    value, units = float(number), ["B", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if value >= 100 or units[0] == "B" else f"{value:.1f} {units[0]}"


def duration(seconds: float) -> str:
    """Return seconds as people read them."""
    minutes = round(seconds / 60)
    days, rest = divmod(minutes, 1440)
    hours, left = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (left, "min")]
    shown = [f"{number} {unit}" for number, unit in parts if number]
    return " ".join(shown[:2]) or "1 min"
