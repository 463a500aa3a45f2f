"""One event, one line: JSON on stderr, fields to journald, or text for a terminal. Secrets are never arguments of a log call."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from dfud.model.text import visible, visible_json, visible_lines

MINUTE_S = 60.0
KINDS_MAX = 1000  # of which it is known how many lines came
JOURNAL = "/run/systemd/journal/socket"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def fields(record: logging.LogRecord) -> dict[str, str]:
    """Return what a log call gave as `extra`, and the traceback, as text."""
    found = {key: str(value) for key, value in vars(record).items() if key not in _STANDARD}
    if record.exc_info:
        found["traceback"] = logging.Formatter().formatException(record.exc_info)
    return found


class PerKind(logging.Filter):
    """Lets so many lines of each kind through in a minute; the next one says how many were left out. A kind is who logs, and what.

    A critical line always passes. clock: one that only moves forward, in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._per_minute = per_minute
        self._clock = clock
        self._kinds: dict[
            tuple[str, str], tuple[float, int]
        ] = {}  # when its minute began, and how many lines came in it

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._per_minute or record.levelno >= logging.CRITICAL:
            return True
        key, now = (record.name, str(record.msg)), self._clock()
        began, count = self._kinds.get(key, (now, 0))
        left_out = max(0, count - self._per_minute)
        if now - began >= MINUTE_S:
            began, count = now, 0
            if left_out:
                record.left_out = left_out
        if key not in self._kinds and len(self._kinds) >= KINDS_MAX:
            self._kinds.pop(next(iter(self._kinds)))
        self._kinds[key] = (began, count + 1)
        return count < self._per_minute


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {"time": at, "level": record.levelname.lower(), "part": record.name, "event": record.getMessage()}
        return visible_json({**head, **fields(record)})


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        found = fields(record)
        traceback = found.pop("traceback", "")
        told = " ".join(f"{key}={visible_json(value)}" for key, value in found.items())
        line = f"{at} {record.levelname.lower():7} {record.name}: {visible(record.getMessage())} {told}".rstrip()
        return "\n".join([line, *visible_lines(traceback)])


class JournalHandler(logging.Handler):
    """Sends fields to journald. Source: systemd's "Native Journal Protocol"."""

    def __init__(self, path: str = JOURNAL) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        told = {
            "MESSAGE": visible(record.getMessage()),
            "PRIORITY": str(_PRIORITY.get(record.levelno, 6)),
            "DFUD_PART": record.name,
        }
        told |= {f"DFUD_{key.upper()}": value for key, value in fields(record).items()}
        data = b"".join(_field(key, value) for key, value in told.items())
        try:
            self._socket.sendto(data[:200_000], self._path)
        except OSError:
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()


def _field(key: str, value: str) -> bytes:
    name = "".join(c if c.isalnum() and c.isascii() else "_" for c in key).encode()
    data = value.encode("utf-8", "replace")
    return name + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"


def configure(kind: str, level: str, environment: Mapping[str, str], per_minute: int = 0) -> None:
    """Set up the process's logging. kind: auto, json, journald or text; per_minute: lines of one kind, 0: no limit."""
    if kind == "auto":
        kind = "journald" if environment.get("JOURNAL_STREAM") else "text" if sys.stderr.isatty() else "json"
    handler: logging.Handler
    if kind == "journald":
        handler = JournalHandler()
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(TextFormatter() if kind == "text" else JsonFormatter())
    handler.addFilter(PerKind(per_minute))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for noisy in ("hypercorn.error", "httpx", "quart.app"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
