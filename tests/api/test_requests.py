"""What every transport takes for a number, a chunk and JSON."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import chunk_range_untrusted, is_acceptable, says_json, timeout_untrusted

PACKAGE = "0123456789abcdef" * 2


def test_the_newer_name_of_the_waiting_time_goes_first() -> None:
    assert timeout_untrusted({}) == 0.0
    assert timeout_untrusted({"commandTimeout": "5"}) == 5.0
    assert timeout_untrusted({"commandTimeout": "5", "ct": "7"}) == 7.0


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1e9", "٣", "1" * 10, "inf", " 1"])
def test_what_is_no_number_of_seconds_is_none(text: str) -> None:
    assert timeout_untrusted({"ct": text}) is None
    assert chunk_range_untrusted(PACKAGE, f"1-{text}") is None


def test_a_chunk_is_one_or_a_range() -> None:
    assert chunk_range_untrusted(PACKAGE, "7") == (7, 7)
    assert chunk_range_untrusted(PACKAGE, "7-12") == (7, 12)
    assert chunk_range_untrusted(PACKAGE.upper(), "7") is None
    assert chunk_range_untrusted("../" + PACKAGE[3:], "7") is None


@given(st.text(), st.text())
def test_no_text_makes_them_raise(one: str, other: str) -> None:
    timeout_untrusted({"ct": one})
    chunk_range_untrusted(one, other)
    chunk_range_untrusted(PACKAGE, one)
    says_json(one)


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; x=y", "text/json", "a/senml+json", "a/b+json;x=y"])
@pytest.mark.parametrize(
    ("body", "right"), [(b"{}", True), (b"1e999", True), (b"", False), (b"{", False), (b"\xff", False), (b"[" * 60_000, False)]
)
def test_what_says_that_it_is_json_must_be(kind: str, body: bytes, right: bool) -> None:
    assert says_json(kind)
    assert is_acceptable("temp", kind, body) is right
    assert is_acceptable("dfu", kind, body), "a status says what it likes"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/jsonl", "application/json-seq", "json"])
def test_anything_else_may_be_anything(kind: str) -> None:
    assert not says_json(kind)
    assert is_acceptable("temp", kind, b"\xff")
