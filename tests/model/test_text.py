"""Untrusted text, made fit to be shown."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dfud.model.text import hidden, visible, visible_json, visible_lines

NASTY = st.text(st.one_of(st.characters(), st.sampled_from("\x1b\x07\x9b\x9d\x7f\r\n\t\u202e\u2066\u200b\u2028\ufeff\u3164[]\\")))
SHOWS_NOTHING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1.2", "1.2"),
        ("Türsteuerung №4 ☂", "Türsteuerung №4 ☂"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb", r"a\u202eb"),
        ("\U000e0041", r"\U000e0041"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\u2028", r"\u2028"),
        ("\ud800", r"\ud800"),
        ("\u3164", r"\u3164"),
        ("C:\\new", "C:\\new"),
    ],
)
def test_what_is_hidden_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


@settings(deadline=None)
@given(NASTY)
@example("\x1b[31m\u202e")
def test_shown_text_holds_nothing_hidden(text: str) -> None:
    shown = visible(text)
    assert not [c for c in shown if unicodedata.category(c) in SHOWS_NOTHING or (c.isspace() and c != " ")]
    shown.encode("utf-8")  # a terminal can take it
    assert visible(shown) == shown


@settings(deadline=None)
@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_what_can_be_read_stays_as_it_is(text: str) -> None:
    assert visible(text) == "".join(visible(c) if hidden(c) else c for c in text)


@settings(deadline=None)
@given(NASTY)
def test_no_text_makes_lines_that_it_did_not_have(text: str) -> None:
    lines = visible_lines(text)
    assert len(lines) <= text.count("\n") + text.count("\r") + 1
    assert all(visible(line) == line for line in lines)


def test_a_traceback_keeps_its_lines() -> None:
    assert visible_lines("Traceback:\n  File \x1b[2J\r\nValueError\n") == ["Traceback:", r"  File \x1b[2J", "ValueError"]
    assert visible_lines("") == []


@settings(deadline=None)
@given(st.dictionaries(NASTY, NASTY), st.sampled_from([None, 2]))
def test_json_reads_back_the_same_and_holds_nothing_hidden(value: dict[str, str], indent: int | None) -> None:
    told = visible_json(value, indent)
    assert json.loads(told) == value
    assert not [c for c in told if hidden(c) and c != "\n"]


def test_json_leaves_letters_readable() -> None:
    assert visible_json({"a": "ü\x9b\x7f\U000e0001"}) == r'{"a": "ü\u009b\u007f\udb40\udc01"}'
