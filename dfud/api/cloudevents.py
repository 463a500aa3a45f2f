"""Changes of deployments and rollouts as CloudEvents 1.0 in JSON (docs/events.md). Pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from dfud.api.events import ChangeEvent


def change_event(change: ChangeEvent, instance: str = "dfud") -> bytes:
    """Return a change as one line of JSON without its newline. Events of one partitionkey are told in order. Never raises."""
    c = change
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": c.id,
        "type": f"io.dfud.{c.kind}.v1",
        "source": f"dfud://{c.app}/{c.kind}s/{quote(c.subject, safe='', errors='replace')}",
        "subject": c.subject,
        "time": datetime.fromtimestamp(c.at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "application": c.app,
        "partitionkey": f"{c.app}/{c.kind}s/{c.subject}",
        "instance": instance,
        "datacontenttype": "application/json",
        "data": c.data,
    }
    if c.kind == "deployment":
        event["device"] = c.subject
    try:
        return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair: escaped, as it came
        return json.dumps(event, separators=(",", ":")).encode()
