"""What is asked of the database when it is read. Pure."""

from __future__ import annotations

from dfud.api import Requirement, Selector
from dfud_postgres.wire import Query

APP = Query("SELECT body FROM app WHERE name=$1", "t")
NEWEST = "ORDER BY number DESC, created DESC, id DESC "
_DEPLOYMENTS = "SELECT id, app, device, body FROM deployment WHERE app=$1 AND device=$2 "
_LAST = f"SELECT body FROM deployment WHERE app=d.app AND device=d.name {NEWEST} LIMIT 1"  # noqa: S608 - a constant
VIEW = (
    "d.name, d.body, a.body, p.body, d.firmware, d.newer, d.version, a.sequence "
    "FROM device d JOIN actual a ON a.app=d.app AND a.device=d.name "
    f"LEFT JOIN LATERAL ({_LAST}) p ON true"
)
DEVICE = Query(f"SELECT {VIEW} WHERE d.app=$1 AND d.name=$2", "tt")
OLDER = Query(f"{_DEPLOYMENTS} {NEWEST} LIMIT 1 OFFSET $3", "tti")
DEPLOYMENTS = Query(f"{_DEPLOYMENTS} AND NOT id=ANY($3) {NEWEST} LIMIT $4", "ttTi")
DEPLOYMENT = Query("SELECT id, app, device, body FROM deployment WHERE id=$1", "t")
ENDED = Query(
    "SELECT d.app, d.device, d.version, d.created, d.number, f.sha256 FROM deployment d "
    "JOIN firmware f ON f.app=d.app AND f.version=d.version WHERE d.id=$1 AND NOT d.open",
    "t",
)
ALIAS = Query(
    "SELECT name FROM device WHERE app=$1 AND name=$2 UNION ALL SELECT device FROM alias WHERE app=$1 AND alias=$2",
    "tt",
)
ALIASES = Query(  # a device's own name comes last, for it is what stays
    "SELECT alias, device FROM alias WHERE app=$1 AND alias=ANY($2) "
    "UNION ALL SELECT name, name FROM device WHERE app=$1 AND name=ANY($2)",
    "tT",
)
FIRMWARE = Query("SELECT version, body FROM firmware WHERE app=$1 AND version=$2", "tt")
FIRMWARES = Query("SELECT version, body FROM firmware WHERE app=$1 ORDER BY sequence DESC, version DESC", "t")
BY_DIGEST = Query("SELECT version, body FROM firmware WHERE app=$1 AND sha256=$2 ORDER BY sequence DESC", "tt")
HISTORY = Query("SELECT number, body FROM history WHERE app=$1 AND device=$2 ORDER BY number DESC LIMIT $3", "tti")
USERS = Query(
    "SELECT name FROM device WHERE app=$1 AND wants=$2 AND wants<>'' "
    "UNION SELECT device FROM deployment WHERE app=$1 AND version=$2 AND open ORDER BY 1 LIMIT 10",
    "tt",
)
DOCUMENT = Query("SELECT value FROM document WHERE collection=$1 AND key=$2", "tt")
COUNTS = Query("SELECT name, number FROM count WHERE scope=$1 AND number<>0", "t")
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


def apps(selector: Selector) -> tuple[Query, list[object]]:
    """Return the query of a page of apps; its first parameters: names to leave out, limit, offset."""
    terms = Terms("Tii")
    where = terms.of(selector, "SELECT 1 FROM app_label WHERE app=a.name")
    text = f"SELECT name, body FROM app a WHERE NOT name=ANY($1) AND {where} ORDER BY name LIMIT $2 OFFSET $3"  # noqa: S608
    return Query(text, terms.types), terms.values


def devices(columns: str, selector: Selector) -> tuple[Query, list[object]]:
    """Return the query of a page of devices `d`; its first parameters: app, after, names to leave out, limit, offset.

    columns: what is read, up to the sources. Only the page that is returned is joined.
    """
    terms = Terms("ttTii")
    where = terms.of(selector, _OF_DEVICE)
    page = (
        f"SELECT d.app, d.name FROM device d WHERE d.app=$1 AND d.name>$2 AND NOT d.name=ANY($3) AND {where} "  # noqa: S608
        "ORDER BY d.name LIMIT $4 OFFSET $5"
    )
    text = f"WITH page AS MATERIALIZED ({page}) SELECT {columns} JOIN page g ON g.app=d.app AND g.name=d.name ORDER BY d.name"
    return Query(text, terms.types), terms.values


def count(selector: Selector) -> tuple[Query, list[object]]:
    """Return the query that counts the devices of an app."""
    terms = Terms("t")
    where = terms.of(selector, _OF_DEVICE)
    return Query(f"SELECT count(*) FROM device d WHERE d.app=$1 AND {where}", terms.types), terms.values  # noqa: S608
