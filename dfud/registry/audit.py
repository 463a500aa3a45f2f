"""Who changed what: appended to the store, never changed."""

from __future__ import annotations

import secrets

import msgspec

from dfud.api import Change, PutDocument, Store

COLLECTION = "audit"


class AuditEntry(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One change by one user. what: `create`, `update`, `delete`, `publish`, ...; target: `app/device` and the like."""

    at_s: float
    by: str
    what: str
    target: str
    detail: str = ""


def entry(at_s: float, by: str, what: str, target: str, detail: str = "") -> Change:
    """Return the change to commit together with the one it tells of."""
    key = f"{int(at_s * 1e6):020d}-{secrets.token_hex(4)}"
    value = msgspec.json.encode(AuditEntry(at_s, by, what, target, detail))
    return PutDocument(COLLECTION, key, value, create=True)


async def read(store: Store, *, after: str = "", limit: int = 200) -> list[tuple[str, AuditEntry]]:
    """Return entries behind the key `after`, oldest first, with their keys."""
    found = await store.documents(COLLECTION, after=after, limit=limit)
    return [(key, msgspec.json.decode(value, type=AuditEntry)) for key, value in found]
