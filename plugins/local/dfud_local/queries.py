"""What is asked of the database, as SQL text and the values to bind. Pure."""

from __future__ import annotations

import json

from dfud.api import Selector

DEPLOYMENTS = "SELECT id, app, device, body FROM deployment WHERE app=? AND device=? "
ENDED = (
    "SELECT d.app, d.device, d.version, d.created, d.number, f.sha256 FROM deployment d "
    "JOIN firmware f ON f.app=d.app AND f.version=d.version WHERE d.id=? AND NOT d.open"
)
NEWEST = "ORDER BY number DESC, created DESC, id DESC "
VIEW = (
    "d.body, a.body, "
    "(SELECT body FROM deployment WHERE app=d.app AND device=d.name ORDER BY number DESC, created DESC, id DESC LIMIT 1), "
    "d.firmware, d.newer, d.version, COALESCE(a.sequence, 0)"
)
FROM = "FROM device d LEFT JOIN actual a ON a.app=d.app AND a.device=d.name"
ALIASES = (  # CROSS: the names drive, whatever the planner thinks; a device's own name comes last, for it is what stays
    "SELECT v.value, a.device FROM json_each(?1) v CROSS JOIN alias a ON a.app=?2 AND a.alias=v.value "
    "UNION ALL SELECT v.value, d.name FROM json_each(?1) v CROSS JOIN device d ON d.app=?2 AND d.name=v.value"
)
BY_DIGEST = (
    "SELECT version, body FROM firmware WHERE app=?1 AND version IN (SELECT version FROM firmware WHERE app=?1 AND sha256=?2 "
    "UNION ALL SELECT version FROM firmware_image WHERE app=?1 AND sha256=?2) ORDER BY sequence DESC LIMIT 1 OFFSET ?3"
)
DEVICE = f"SELECT {VIEW} {FROM} WHERE d.app=? AND d.name=?"

VIEWS = (  # CROSS: as above
    f"SELECT {VIEW}, d.name FROM json_each(?2) v CROSS JOIN device d ON d.app=?1 AND d.name=v.value "  # noqa: S608 - constants
    "LEFT JOIN actual a ON a.app=d.app AND a.device=d.name"
)


def where_of(selector: Selector, labels: str) -> tuple[str, list[str]]:
    """Return the SQL condition of a selector, given the query of the labels of one row, and the values to bind."""
    clauses = ["1"]
    values: list[str] = []
    for r in selector.requirements:
        test = f"EXISTS ({labels} AND key=?"
        values.append(r.key)
        if r.operator in ("in", "notin"):
            test += " AND value IN (SELECT value FROM json_each(?))"
            values.append(json.dumps(r.values))
        clauses.append(f"{'NOT ' if r.operator in ('notin', 'absent') else ''}{test})")
    return " AND ".join(clauses), values


def successor(prefix: str) -> str:
    """Return the least text above every text that begins with `prefix`, "" if there is none. Order: by code point, as UTF-8 sorts."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return ""
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if following == 0xD800 else following)  # UTF-8 has no surrogates
