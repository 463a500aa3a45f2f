"""Who changed what: appended to the store, never changed."""

from __future__ import annotations

import secrets

import msgspec

from dfud.api import Change, PutDocument, Store

COLLECTION = "audit"
PAGE = 1000


class AuditEntry(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One change by one user. what: `create`, `update`, `delete`, `publish`, ...; target: `app/device` and the like."""

    at_s: float
    by: str
    what: str
    target: str
    detail: str = ""


def entry(at_s: float, by: str, what: str, target: str, detail: str = "") -> Change:
    """Return the change to commit together with the one it tells of."""
    key = f"{_key(at_s)}-{secrets.token_hex(4)}"
    value = msgspec.json.encode(AuditEntry(at_s, by, what, target, detail))
    return PutDocument(COLLECTION, key, value, create=True)


class Filter(msgspec.Struct, frozen=True):
    """Which entries; "" and None: any. app: the app itself or what is in it; target: exactly, or what is below it."""

    app: str = ""
    by: str = ""
    what: str = ""
    target: str = ""
    since_s: float | None = None
    until_s: float | None = None

    def takes(self, e: AuditEntry) -> bool:
        below = all(not name or e.target == name or e.target.startswith(name + "/") for name in (self.app, self.target))
        return below and self.by in ("", e.by) and self.what in ("", e.what)


async def read(
    store: Store, wanted: Filter | None = None, *, after: str = "", limit: int = 200
) -> list[tuple[str, AuditEntry]]:
    """Return entries behind the key `after`, oldest first, with their keys."""
    wanted = wanted or Filter()
    if wanted.since_s is not None:
        after = max(after, _key(wanted.since_s))
    found: list[tuple[str, AuditEntry]] = []
    while len(found) < limit:
        page = await store.documents(COLLECTION, after=after, limit=PAGE)
        for key, value in page:
            entry = msgspec.json.decode(value, type=AuditEntry)
            if wanted.until_s is not None and entry.at_s >= wanted.until_s:
                return found
            if wanted.takes(entry) and len(found) < limit:
                found.append((key, entry))
        if len(page) < PAGE:
            break
        after = page[-1][0]
    return found


def _key(at_s: float) -> str:
    return f"{max(0, int(at_s * 1e6)):020d}"
