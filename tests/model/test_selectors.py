"""Label selectors: what they match, what is no selector, and that none costs more than its length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.errors import PeerError
from dfud.model.selectors import SELECTOR_MAX_BYTES, SELECTOR_MAX_TERMS, parse_selector_untrusted

LABELS = {"zone": "eu", "power": "", "example.com/tier": "gold"}


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("", True),
        ("zone=eu", True),
        ("zone==eu", True),
        ("zone!=eu", False),
        ("zone in (us, eu)", True),
        ("zone notin (us, eu)", False),
        ("zone,power", True),
        ("!zone", False),
        ("!missing", True),
        ("missing!=x", True),
        ("missing notin (x)", True),
        ("missing in (x)", False),
        ("power=", True),
        ("example.com/tier=gold,zone in (eu),!x", True),
        ("zone=eu,power=on", False),
    ],
)
def test_a_selector_matches_as_its_grammar_says(selector: str, matches: bool) -> None:
    assert parse_selector_untrusted(selector).matches(LABELS) is matches


@pytest.mark.parametrize(
    "selector", [",", "a=b,", "=b", "a in b", "a in (b", "a=b=c", "a b", "!", "a,,b", "ü=1", "a=(b)"]
)
def test_a_selector_outside_the_grammar_is_refused(selector: str) -> None:
    with pytest.raises(PeerError, match="label selector"):
        parse_selector_untrusted(selector)


@given(st.text(max_size=60))
def test_no_text_makes_the_selector_parser_raise_anything_else(selector: str) -> None:
    try:
        parse_selector_untrusted(selector).matches(LABELS)
    except PeerError:
        return


def test_a_selector_is_limited_in_length_and_terms() -> None:
    with pytest.raises(PeerError, match=f"30000 bytes, expected at most {SELECTOR_MAX_BYTES}"):
        parse_selector_untrusted(" " * 30_000)
    with pytest.raises(PeerError, match="8 bytes, expected at most 7"):
        parse_selector_untrusted("ü" * 4, max_bytes=7)
    most = ",".join(["a"] * SELECTOR_MAX_TERMS)
    assert len(parse_selector_untrusted(most).requirements) == SELECTOR_MAX_TERMS
    with pytest.raises(PeerError, match=f"more than {SELECTOR_MAX_TERMS} terms"):
        parse_selector_untrusted(most + ",a")


@pytest.mark.parametrize("piece", [" ", "a ", "! ", "a,", "a in (", "a in (b,", "=", "\t\n"])
def test_a_long_selector_is_read_once(piece: str) -> None:
    """Read again and again, a megabyte would take hours: with a quadratic reader this test does not end."""
    with pytest.raises(PeerError):
        parse_selector_untrusted(piece * (1_000_000 // len(piece)) + "(", max_bytes=1 << 21, max_terms=1 << 21)
