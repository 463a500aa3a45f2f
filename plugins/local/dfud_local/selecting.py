"""Which devices a selector means, by the index of labels: an app is walked only where no term says what few of its devices have."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from dfud.api import Requirement, Selector
from dfud_local.queries import where_of

# Rows of one label that are sorted by device for one page. Where every term that says what devices have matches more, a walk in the
# order of names finds a page of them soon enough.
SORTED_MAX = 20_000
FEW = 200
LISTS_MAX = 100  # that are remembered
_LABELS_OF = "SELECT 1 FROM device_label WHERE app={0}.app AND device={0}.{1}"
Number = Callable[[str, tuple[Any, ...]], int]


class Drive(msgspec.Struct, frozen=True):
    """The term whose rows of the index are looked at, None: the app's devices are. number: of these rows, up to SORTED_MAX."""

    term: Requirement | None
    number: int = SORTED_MAX


class Drives:
    """What drove a list when its first page was read, for its other pages: to count again for each costs as much as a page.

    One that is outdated costs time, and changes nothing of what is found. Called in several threads.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[str, Selector], Drive] = {}

    def of(self, app: str, selector: Selector, number: Number, after: str) -> Drive:
        """Return what drives a page behind `after`, "": the first one."""
        key = (app, selector)
        found = self._of.get(key) if after else None
        if found is None:
            found = drive_of(app, selector, number)
            if len(self._of) >= LISTS_MAX:
                self._of.clear()
            self._of[key] = found
        return found


def drive_of(app: str, selector: Selector, number: Number) -> Drive:
    """Return the term that the fewest devices have. number: the first column of a query's one row."""
    terms = [term for term in selector.requirements if term.operator in ("in", "exists")]
    best = Drive(next(filter(_is_ordered, terms), None))
    for most in (FEW, SORTED_MAX):  # where one term is had by few devices, the others are not counted for long
        left = min(most, best.number)
        for term in terms:
            where, values = _rows_of(term)
            query = f"SELECT COUNT(*) FROM (SELECT 1 FROM device_label l WHERE l.app=? AND {where} LIMIT {left})"  # noqa: S608
            found = number(query, (app, *values))
            if found < left:
                best, left = Drive(term, found), found
            if not left:
                return best
        if best.number < most:
            return best
    return best


def names_of(app: str, selector: Selector, drive: Drive) -> tuple[str, list[Any], str]:
    """Return a query of the names of the devices that are meant, up to its conditions; the values to bind; what it calls a name."""
    if drive.term is None:
        where, values = where_of(selector, _LABELS_OF.format("d", "name"))
        return f"SELECT d.name AS name FROM device d WHERE d.app=? AND {where}", [app, *values], "d.name"  # noqa: S608 - values are bound
    mine, values = _rows_of(drive.term)
    rest = Selector(tuple(r for r in selector.requirements if r != drive.term))
    where, more = where_of(rest, _LABELS_OF.format("l", "device"))
    # A device has one row for each of its keys, so none comes twice. "+": else SQLite would walk all labels in the order of names.
    name = "l.device" if _is_ordered(drive.term) else "+l.device"
    query = f"SELECT l.device AS name FROM device_label l WHERE l.app=? AND {mine} AND {where}"  # noqa: S608 - as above
    return query, [app, *values, *more], name


def page_of(
    columns: str, app: str, selector: Selector, drive: Drive, *, after: str, bad: str, limit: int, offset: int = 0
) -> tuple[str, list[Any]]:
    """Return the query of a page of devices `d` with what they said last, `a`, in the order of their names.

    bad: names to leave out, as JSON. limit, offset: in devices.
    """
    if drive.term is None:
        # The devices are walked themselves, in the order of their names.
        where, values = where_of(selector, _LABELS_OF.format("d", "name"))
        text = (
            f"SELECT {columns} FROM device d LEFT JOIN actual a ON a.app=d.app AND a.device=d.name WHERE d.app=? AND {where} "  # noqa: S608 - values are bound
            "AND d.name>? AND d.name NOT IN (SELECT value FROM json_each(?)) ORDER BY d.name LIMIT ? OFFSET ?"
        )
        return text, [app, *values, after, bad, limit, offset]
    names, values, name = names_of(app, selector, drive)
    text = (
        f"SELECT {columns} FROM ({names} AND {name}>? AND {name} NOT IN (SELECT value FROM json_each(?)) "  # noqa: S608 - as above
        f"ORDER BY {name} LIMIT ? OFFSET ?) n CROSS JOIN device d ON d.app=? AND d.name=n.name "
        "LEFT JOIN actual a ON a.app=d.app AND a.device=d.name ORDER BY n.name"
    )
    return text, [*values, after, bad, limit, offset, app]


def count_of(app: str, selector: Selector, drive: Drive) -> tuple[str, list[Any]]:
    """Return the query that counts the devices that are meant.

    A device has one row for each of its keys: where one term says all, its rows are counted, and what has it not is the rest.
    """
    if len(selector.requirements) == 1:
        (term,) = selector.requirements
        mine, values = _rows_of(term)
        having = f"SELECT COUNT(*) FROM device_label l WHERE l.app=? AND {mine}"  # noqa: S608 - values are bound
        if term.operator in ("in", "exists"):
            return having, [app, *values]
        return f"SELECT (SELECT COUNT(*) FROM device WHERE app=?) - ({having})", [app, app, *values]  # noqa: S608 - as above
    names, values, _ = names_of(app, selector, drive)
    return f"SELECT COUNT(*) FROM ({names})", values  # noqa: S608 - as above


def _is_ordered(term: Requirement) -> bool:
    """Whether the index has the devices of this term in the order of their names: so a page is read from where the last one ended."""
    return term.operator == "in" and len(set(term.values)) == 1


def _rows_of(term: Requirement) -> tuple[str, list[str]]:
    """Return the condition on the label rows `l` of one term, and the values to bind; of what devices have not: of those that do."""
    if term.operator in ("exists", "absent"):
        return "l.key=?", [term.key]
    if _is_ordered(term):
        return "l.key=? AND l.value=?", [term.key, term.values[0]]
    return "l.key=? AND l.value IN (SELECT value FROM json_each(?))", [term.key, json.dumps(term.values)]
