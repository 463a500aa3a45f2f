"""The audit log: reading it. There is no way to change it."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from quart import Response, request
from quart_trio import QuartTrio

from dfud.api import PeerError
from dfud.model.text import visible
from dfud.registry import audit
from dfud.registry.services import Services
from dfud.registry.status import timestamp
from dfud.registry.web import json_response, number_of, require

LIMIT = 200
LIMIT_MAX = 1000
_KEY = re.compile(r"[0-9]{20}-[0-9a-f]{8}")


def register(app: QuartTrio, services: Services) -> None:
    @app.get("/api/dfu/v1/audit")
    async def audit_log() -> Response:
        """Entries, oldest first, or `?order=newest`: everything for admins of dfud, what concerns an app for its admins."""
        args = request.args
        require("admin", args.get("app"))
        limit = number_of("limit", LIMIT, 1, LIMIT_MAX)
        order = args.get("order", "oldest")
        if order not in ("oldest", "newest"):
            raise PeerError(f"order {order[:20]!r}: expected oldest or newest")
        wanted = audit.Filter(
            app=args.get("app", ""),
            by=args.get("by", ""),
            what=args.get("what", ""),
            target=args.get("target", ""),
            since_s=_time(args.get("since", "")),
            until_s=_time(args.get("until", "")),
        )
        if order == "newest":
            found = await audit.read_newest(services.store, wanted, before=_key("before"), limit=limit)
        else:
            found = await audit.read(services.store, wanted, after=_key("after"), limit=limit)
        return json_response(
            [
                {"key": k, "at": timestamp(e.at_s), "by": e.by, "what": e.what, "target": e.target, "detail": e.detail}
                for k, e in found
            ]
        )


def _key(name: str) -> str:
    key = request.args.get(name, "")
    if key and not _KEY.fullmatch(key):
        raise PeerError(f"{name} {visible(key[:40])!r}: expected the key of an entry")
    return key


def _time(text: str) -> float | None:
    """Read a date or a time of RFC 3339; without a zone it is UTC."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
        return found.timestamp()
    except (ValueError, OverflowError):
        raise PeerError(f"time {text[:40]!r}: expected 2026-11-25 or 2026-11-25T12:00:00Z") from None
