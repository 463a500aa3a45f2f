"""One event, one line: fields to journald, JSON, or text; whatever the values hold."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path

import pytest

from dfud.daemon.logs import JournalHandler, JsonFormatter, PerKind, TextFormatter
from dfud.model.text import hidden


def record(message: str, **extra: object) -> logging.LogRecord:
    found = logging.getLogger("dfud.test").makeRecord("dfud.test", logging.WARNING, "f", 1, message, (), None, extra=extra)
    return found


def test_journald_gets_fields(tmp_path: Path) -> None:
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.bind(str(tmp_path / "journal"))
    handler = JournalHandler(str(tmp_path / "journal"))
    handler.emit(record("deployment", device="lamp\nPRIORITY=0", app="ü"))
    data = journal.recv(10_000)
    handler.close()
    journal.close()
    fields = {}
    while data:
        name, _, rest = data.partition(b"\n")
        size = int.from_bytes(rest[:8], "little")
        fields[name.decode()] = rest[8 : 8 + size].decode()
        assert rest[8 + size : 9 + size] == b"\n"
        data = rest[9 + size :]
    assert fields == {
        "MESSAGE": "deployment",
        "PRIORITY": "4",
        "DFUD_PART": "dfud.test",
        "DFUD_DEVICE": "lamp\nPRIORITY=0",
        "DFUD_APP": "ü",
    }
    journal.close()
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # the journal is gone: not an exception
    handler.emit(record("after"))


def test_json_and_text_keep_to_one_line() -> None:
    line = JsonFormatter().format(record("an event", device="a\nb"))
    assert "\n" not in line
    told = json.loads(line)
    assert (told["event"], told["level"], told["device"]) == ("an event", "warning", "a\nb")
    line = TextFormatter().format(record("an event", device="a\nb"))
    assert "\n" not in line
    assert line.endswith('warning dfud.test: an event device="a\\nb"')


def test_a_traceback_is_a_field() -> None:
    try:
        raise ValueError("x")
    except ValueError as error:
        found = record("failed")
        found.exc_info = (ValueError, error, error.__traceback__)
    assert "ValueError: x" in json.loads(JsonFormatter().format(found))["traceback"]


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_what_a_device_says_does_not_reach_a_terminal_raw(formatter: logging.Formatter) -> None:
    told = "a\x1b]0;x\x07b\x9b31m\u202ec"
    try:
        raise ValueError(told)
    except ValueError as error:
        found = record(told, device=told)
        found.exc_info = (ValueError, error, error.__traceback__)
    assert not [c for c in formatter.format(found) if hidden(c) and c != "\n"]


def test_a_kind_of_line_has_so_many_in_a_minute_and_the_next_says_what_was_left_out() -> None:
    now = [100.0]
    limit = PerKind(3, lambda: now[0])
    assert [limit.filter(record("deployment", device=str(n))) for n in range(5)] == [True] * 3 + [False] * 2
    assert limit.filter(record("another kind")), "each kind for itself"
    critical = record("deployment")
    critical.levelno = logging.CRITICAL
    assert limit.filter(critical)
    now[0] += 60
    after = record("deployment", device="x")
    assert limit.filter(after) and json.loads(JsonFormatter().format(after))["left_out"] == "2"
    again = record("deployment")
    assert limit.filter(again) and "left_out" not in JsonFormatter().format(again)
    assert all(PerKind(0).filter(record("deployment")) for _ in range(2000))


def test_kinds_that_are_made_up_take_no_memory() -> None:
    limit = PerKind(1)
    for number in range(5000):
        limit.filter(record(f"kind {number}"))
    assert len(limit._kinds) <= 1000
