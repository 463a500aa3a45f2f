"""Telemetry as CloudEvents 1.0 in JSON, with the attributes that drogue-cloud gives its events."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

from dfud.api import Telemetry

TYPE = "io.drogue.event.v1"


def cloud_event(telemetry: Telemetry, instance: str) -> bytes:
    """Return the event as one line of JSON without its newline."""
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
    if value is not None:
        event["data"] = value
    else:
        event["data_base64"] = base64.b64encode(t.body).decode()
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")


def _data(t: Telemetry) -> tuple[str, Any]:
    """Return (content type, JSON value or None). What comes without a type is JSON if it reads as such, as at Drogue."""
    kind = t.content_type.partition(";")[0].strip().lower()
    says_json = kind.startswith(("application/json", "text/json")) or kind.endswith("+json")
    if kind and not says_json:
        return t.content_type, None
    try:
        value = json.loads(t.body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return t.content_type or "application/octet-stream", None
    return t.content_type or "application/json", value


def _no_constant(text: str) -> None:
    raise ValueError(text)  # NaN and Infinity are no JSON, whatever Python's parser says
