"""What is asked of the database when it is read. Pure.

A selector's terms find few rows of the index of labels, or nearly all: its statements are planned for their values. With one plan for
all values, a page of 100,000 devices that none had took 270 ms instead of 0.1.
"""

from __future__ import annotations

from dfud.api import Requirement, Selector
from dfud_postgres.wire import Query

# Nothing is shown of an app that was deleted and whose devices are still to go. The app is always $1. Constants; values are bound.
SHOWN = "EXISTS (SELECT 1 FROM app WHERE name=$1 AND NOT dropped)"
APP = Query("SELECT body FROM app WHERE name=$1 AND NOT dropped", "t")
NEWEST = "ORDER BY number DESC, created DESC, id DESC "
_DEPLOYMENTS = f"SELECT id, app, device, body FROM deployment WHERE app=$1 AND device=$2 AND {SHOWN} "  # noqa: S608
_LAST = f"SELECT body FROM deployment WHERE app=d.app AND device=d.name {NEWEST} LIMIT 1"  # noqa: S608
VIEW = (
    "d.name, d.body, a.body, p.body, d.firmware, d.newer, d.version, a.sequence "
    "FROM device d JOIN actual a ON a.app=d.app AND a.device=d.name "
    f"LEFT JOIN LATERAL ({_LAST}) p ON true"
)
DEVICE = Query(f"SELECT {VIEW} WHERE d.app=$1 AND d.name=$2 AND {SHOWN}", "tt")
VIEWS = Query(f"SELECT {VIEW} WHERE d.app=$1 AND d.name=ANY($2) AND {SHOWN}", "tT")
OLDER = Query(f"{_DEPLOYMENTS} {NEWEST} LIMIT 1 OFFSET $3", "tti")
DEPLOYMENTS = Query(f"{_DEPLOYMENTS} AND NOT id=ANY($3) {NEWEST} LIMIT $4", "ttTi")
DEPLOYMENT = Query(
    "SELECT d.id, d.app, d.device, d.body FROM deployment d JOIN app p ON p.name=d.app AND NOT p.dropped WHERE d.id=$1",
    "t",
)
ENDED = Query(
    "SELECT d.app, d.device, d.version, d.created, d.number, f.body FROM deployment d "
    "JOIN firmware f ON f.app=d.app AND f.version=d.version WHERE d.id=$1 AND NOT d.open",
    "t",
)
_NAMED = f"SELECT name, name FROM device WHERE app=$1 AND name=ANY($2) AND {SHOWN}"  # noqa: S608
_ALIASED = f"SELECT alias, device FROM alias WHERE app=$1 AND alias=ANY($2) AND {SHOWN}"  # noqa: S608
ALIASES = Query(f"{_ALIASED} UNION ALL {_NAMED}", "tT")  # a device's own name comes last, for it is what stays
FIRMWARE = Query("SELECT version, body FROM firmware WHERE app=$1 AND version=$2", "tt")
FIRMWARES = Query("SELECT version, body FROM firmware WHERE app=$1 ORDER BY sequence DESC, version DESC", "t")
BY_DIGEST = Query(
    "SELECT f.version, f.body FROM firmware f JOIN firmware_image i ON i.app=f.app AND i.version=f.version "
    "WHERE i.app=$1 AND i.sha256=$2 ORDER BY f.sequence DESC",
    "tt",
)
_HISTORY = f"SELECT number, body FROM history WHERE app=$1 AND device=$2 AND {SHOWN}"  # noqa: S608
HISTORY = Query(f"{_HISTORY} ORDER BY number DESC LIMIT $3", "tti")
USERS = Query(
    "SELECT name FROM device WHERE app=$1 AND wants=$2 AND wants<>'' "
    # Where the app firmware is said as well; of devices that ask for anything themselves, and a firmware is deleted seldom.
    "UNION SELECT name FROM device WHERE app=$1 AND wants<>'' AND strpos(wants, chr(10)) > 0 AND $2<>'' "
    "AND $2 IN (split_part(wants, chr(10), 1), split_part(wants, chr(10), 2)) "
    "UNION SELECT device FROM deployment WHERE app=$1 AND version=$2 AND open ORDER BY 1 LIMIT 10",
    "tt",
)
DOCUMENT = Query("SELECT value FROM document WHERE collection=$1 AND key=$2", "tt")
COUNTS = Query("SELECT name, number FROM count WHERE scope=$1 AND number<>0", "t")
COLLECTIONS = Query("SELECT DISTINCT collection FROM document ORDER BY 1")
SCOPES = Query("SELECT DISTINCT scope FROM count WHERE scope>$1 AND number<>0 ORDER BY 1 LIMIT $2", "ti")
STORED = Query("SELECT 1 FROM blob WHERE sha256=$1 AND stored", "t")
_DOCUMENTS = "SELECT key, value FROM document WHERE collection=$1 AND key>=$2 AND key>$3 AND {} ORDER BY key LIMIT $4"
DOCUMENTS = Query(_DOCUMENTS.format("true"), "ttti")
DOCUMENTS_BELOW = Query(_DOCUMENTS.format("key<$5"), "tttit")


class Terms:
    """SQL conditions of a selector, and the values that they bind, numbered on from those that are bound already."""

    def __init__(self, bound: str) -> None:
        self.types = bound
        self.values: list[object] = []

    def bind(self, kind: str, value: object) -> str:
        self.types += kind
        self.values.append(value)
        return f"${len(self.types)}"

    def of(self, selector: Selector, labels: str) -> str:
        """Return the condition, given the query of the labels of one row."""
        return " AND ".join(["true", *(self._one(r, labels) for r in selector.requirements)])

    def _one(self, r: Requirement, labels: str) -> str:
        test = f"EXISTS ({labels} AND key={self.bind('t', r.key)}"
        if r.operator in ("in", "notin"):
            test += f" AND value=ANY({self.bind('T', list(r.values))})"
        return f"{'NOT ' if r.operator in ('notin', 'absent') else ''}{test})"


_OF_DEVICE = "SELECT 1 FROM device_label WHERE app=d.app AND device=d.name"
# It follows from the rest that the device is behind; said again, since a plan that merges reads the labels from the first one else.
_OF_DEVICE_BEHIND = f"{_OF_DEVICE} AND device>$2"


def apps(selector: Selector) -> tuple[Query, list[object]]:
    """Return the query of a page of apps; its first parameters: names to leave out, limit, offset."""
    terms = Terms("Tii")
    where = terms.of(selector, "SELECT 1 FROM app_label WHERE app=a.name")
    text = f"SELECT name, body FROM app a WHERE NOT dropped AND NOT name=ANY($1) AND {where} ORDER BY name LIMIT $2 OFFSET $3"  # noqa: S608
    return Query(text, terms.types, by_values=bool(selector.requirements)), terms.values


def devices(columns: str, selector: Selector) -> tuple[Query, list[object]]:
    """Return the query of a page of devices `d`; its first parameters: app, after, names to leave out, limit, offset.

    columns: what is read, up to the sources. Only the page that is returned is joined.
    """
    terms = Terms("ttTii")
    where = terms.of(selector, _OF_DEVICE_BEHIND)
    page = (
        f"SELECT d.app, d.name FROM device d WHERE d.app=$1 AND d.name>$2 AND NOT d.name=ANY($3) AND {SHOWN} AND {where} "  # noqa: S608
        "ORDER BY d.name LIMIT $4 OFFSET $5"
    )
    text = f"WITH page AS MATERIALIZED ({page}) SELECT {columns} JOIN page g ON g.app=d.app AND g.name=d.name ORDER BY d.name"
    return Query(text, terms.types, by_values=bool(selector.requirements)), terms.values


_OPEN = (
    f"SELECT d.app, d.name FROM device d WHERE d.app=$1 AND d.name>$2 AND NOT d.name=ANY($3) AND {SHOWN} "  # noqa: S608
    "AND EXISTS (SELECT 1 FROM deployment o WHERE o.app=d.app AND o.device=d.name AND o.device>$2 AND o.open) "
    "ORDER BY d.name LIMIT $4"
)
UPDATING = Query(
    f"WITH page AS MATERIALIZED ({_OPEN}) SELECT {VIEW} JOIN page g ON g.app=d.app AND g.name=d.name ORDER BY d.name",
    "ttTi",
)


def count(selector: Selector) -> tuple[Query, list[object]]:
    """Return the query that counts the devices of an app."""
    terms = Terms("t")
    where = terms.of(selector, _OF_DEVICE)
    text = f"SELECT count(*) FROM device d WHERE d.app=$1 AND {SHOWN} AND {where}"  # noqa: S608 - as above
    return Query(text, terms.types, by_values=bool(selector.requirements)), terms.values


# Pruning

OLD_HISTORY = Query("SELECT id, at_s FROM history WHERE id>$1 ORDER BY id LIMIT $2", "ii")
DELETE_HISTORY = Query("DELETE FROM history WHERE id=ANY($1)", "I")
OLD_DEPLOYMENTS = Query(
    "SELECT created, id FROM deployment WHERE NOT open AND created<$1 AND (created, id)>($2, $3) ORDER BY created, id LIMIT $4",
    "ffti",
)
DELETE_DEPLOYMENTS = Query(
    "DELETE FROM deployment d WHERE id=ANY($1) AND NOT open AND EXISTS (SELECT 1 FROM deployment n "
    "WHERE n.app=d.app AND n.device=d.device AND (n.number, n.created, n.id)>(d.number, d.created, d.id))",
    "T",
)
DROPPED = Query("SELECT name FROM app WHERE dropped ORDER BY name LIMIT 1")
DROP_DEVICES = Query(
    "DELETE FROM device WHERE app=$1 AND name IN (SELECT name FROM device WHERE app=$1 ORDER BY name LIMIT $2)", "ti"
)
DROP_APP = Query("DELETE FROM app WHERE name=$1 AND dropped AND NOT EXISTS (SELECT 1 FROM device WHERE app=$1)", "t")
