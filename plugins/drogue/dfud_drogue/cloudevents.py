"""Telemetry as CloudEvents 1.0 in JSON, with the attributes that drogue-cloud gives its events."""

from __future__ import annotations

import base64
import contextlib
import json
import math
from datetime import UTC, datetime
from typing import Any

from dfud.api import Telemetry, says_json

TYPE = "io.drogue.event.v1"
DEPTH_MAX = 64  # deeper JSON travels as bytes: the next reader's stack is not ours to fill
_NONE: Any = object()


def cloud_event(telemetry: Telemetry, instance: str) -> bytes:
    """Return the event as one line of JSON without its newline.

    Never raises, whatever the body is: what cannot be a value of JSON (not UTF-8, not a finite number, too deep) is data_base64.
    """
    t = telemetry
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": t.id,
        "type": TYPE,
        "source": f"drogue://{t.app}/{t.device}",
        "subject": t.channel,
        "time": datetime.fromtimestamp(t.at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "application": t.app,
        "device": t.device,
        "sender": t.sender,
        "partitionkey": f"{t.app}/{t.sender}",
        "instance": instance,
    }
    if t.data_schema:
        event["dataschema"] = t.data_schema
    content_type, value = _data(t)
    event["datacontenttype"] = content_type
    if value is not _NONE:
        with contextlib.suppress(ValueError, RecursionError):
            return _encode({**event, "data": value})
    return _encode({**event, "data_base64": base64.b64encode(t.body).decode()})


def _encode(event: dict[str, Any]) -> bytes:
    try:
        return json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair: escaped, as it came
        return json.dumps(event, separators=(",", ":"), allow_nan=False).encode()


def _data(t: Telemetry) -> tuple[str, Any]:
    """Return (content type, JSON value or _NONE). What comes without a type is JSON if it reads as such, as at Drogue."""
    if t.content_type.strip() and not says_json(t.content_type):
        return t.content_type, _NONE
    try:
        value = json.loads(t.body, parse_constant=_no_constant, parse_float=_finite)
        _check_depth(value)
    except (ValueError, RecursionError):
        return t.content_type or "application/octet-stream", _NONE
    return t.content_type or "application/json", value


def _no_constant(text: str) -> None:
    raise ValueError(text)  # NaN and Infinity are no JSON, whatever Python's parser says


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)  # JSON, but nobody behind here could read it
    return number


def _check_depth(value: Any) -> None:
    """Raise ValueError for what is nested deeper than DEPTH_MAX."""
    level = [value]
    for _ in range(DEPTH_MAX):
        containers = [v for v in level if isinstance(v, dict | list)]
        level = [inner for c in containers for inner in (c.values() if isinstance(c, dict) else c)]
        if not level:
            return
    raise ValueError(f"nested deeper than {DEPTH_MAX}")
