"""A rollout as people read it: a line, a table, bars, and what happened to it."""

from __future__ import annotations

from typing import Any

from rich.progress_bar import ProgressBar
from rich.table import Table as RichTable
from rich.text import Text

from dfud.cli.client import Session
from dfud.cli.resources import wanted_text
from dfud.cli.show import Table
from dfud.model.text import visible

ENDED = frozenset({"finished", "aborted"})
COUNTED = {"told": "told", "underWay": "under way", "done": "done", "failed": "failed", "left": "went back"}


def brought(spec: dict[str, Any]) -> str:
    """Return what a rollout brings: `1.3`, `app 3.2`, or both."""
    return wanted_text({new: spec[old] for old, new in (("firmware", "version"), ("app", "app")) if spec.get(old)})


def line(found: dict[str, Any]) -> str:
    """Return where a rollout is, for where nothing can be drawn."""
    status = found["status"]
    sums = [(text, sum(w[key] for w in status["waves"])) for key, text in COUNTED.items()]
    counts = ", ".join(f"{number} {text}" for text, number in sums)
    return f"{found['metadata']['name']}: {status['state']}, wave {status['wave']}: {counts}"


def say_history(session: Session, found: dict[str, Any]) -> None:
    if link := found["status"].get("link"):
        session.say(f"It is a rollout of {found['status']['store']}, which is steered there: {link}")
    for one in found["status"]["history"]:
        who = f" by {one['by']}" if one.get("by") else ""
        reason = one.get("reason", "").removeprefix(f"wave {one['wave']}: ")
        why = f": {reason}" if reason else ""
        session.say(f"{one['at']}  {one['event']}{who} -> {one['state']}, wave {one['wave']}{why}")


def title(found: dict[str, Any]) -> str:
    status = found["status"]
    said = f"{found['metadata']['name']}: {brought(found['spec'])}, {status['state']}"
    return f"{said} ({status['reason']})" if status.get("reason") else said


def rows(found: dict[str, Any]) -> Table:
    """Return what picture() shows, without bars and as wide as it is: for a pipe or a file."""
    status = found["status"]
    table = Table("WAVE", "DONE", "OF", "UNDER WAY", "FAILED", "WENT BACK", right=True)
    for number, wave in enumerate(status["waves"], 1):
        mark = ">" if number == status["wave"] and status["state"] not in ENDED else " "
        whole = max(wave["expected"], wave["told"])
        table.add_row(f"{mark}{number}", wave["done"], whole, wave["underWay"], wave["failed"], wave["left"])
    if back := status.get("goingBack"):
        table.add_row("back", back["done"], back["told"], back["underWay"], back["failed"], back["left"])
    return table


def picture(found: dict[str, Any]) -> RichTable:
    """Return a bar a wave under a line that says where the rollout is."""
    status = found["status"]
    table = RichTable(
        title=Text(visible(title(found))), title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for column in ("WAVE", "", "DONE", "OF", "UNDER WAY", "FAILED", "WENT BACK"):
        table.add_column(column, justify="left" if column in ("WAVE", "") else "right")
    for number, wave in enumerate(status["waves"], 1):
        whole = max(wave["expected"], wave["told"])
        mark = ">" if number == status["wave"] and status["state"] not in ENDED else " "
        numbers = (str(wave[key]) for key in ("underWay", "failed", "left"))
        bar = ProgressBar(total=max(1, whole), completed=wave["done"], width=30)
        table.add_row(f"{mark}{number}", bar, str(wave["done"]), str(whole), *numbers)
    if back := status.get("goingBack"):
        row = (str(back["done"]), str(back["told"]), str(back["underWay"]), str(back["failed"]), str(back["left"]))
        table.add_row("back", "", *row)
    return table
