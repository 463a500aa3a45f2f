"""What requests of devices have in common, whichever transport carries them: numbers, chunk names, JSON. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

DIGITS_MAX = 9
_PACKAGE = re.compile("[0-9a-f]{32}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX


def timeout_untrusted(query: Mapping[str, str]) -> float | None:
    """Return for how many seconds a device waits for a command, by `ct` or Drogue's older name; None if that is no number."""
    text = query.get("ct", query.get("commandTimeout", "0"))
    return float(text) if _is_number(text) else None


def chunk_range_untrusted(package: str, which: str) -> tuple[int, int] | None:
    """Return (first, last) of `which`, "7" or "7-12", for a package by its hexadecimal name; None if either is no such thing."""
    first, dash, last = which.partition("-")
    if not _PACKAGE.fullmatch(package) or not _is_number(first) or (dash and not _is_number(last)):
        return None
    return int(first), int(last if dash else first)


def says_json(content_type: str) -> bool:
    """Say whether a content type is JSON (RFC 6839, section 3.1, for `+json`)."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind in ("application/json", "text/json") or kind.endswith("+json")


def is_acceptable(channel: str, content_type: str, body: bytes) -> bool:
    """Say whether a publish may go on to the endpoint: what says that it is JSON must be JSON; docs/drogue.md."""
    if channel == "dfu" or not says_json(content_type):
        return True
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True
