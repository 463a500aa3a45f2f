"""Names and label selectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.errors import PeerError
from dfud.model.names import check_app_name, check_device_name, check_labels, parse_selector_untrusted

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


@pytest.mark.parametrize("name", ["a", "app-1", "a.b-c.d", "x" * 63])
def test_an_app_name_is_a_host_name(name: str) -> None:
    assert check_app_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a..b", "x" * 64, "a\n"])
def test_other_app_names_are_refused(name: str) -> None:
    with pytest.raises(PeerError, match="app name"):
        check_app_name(name)


def test_a_device_name_may_be_any_text_but_control_characters() -> None:
    assert check_device_name("Türsteuerung 1/ä@x") == "Türsteuerung 1/ä@x"
    for name in ("", "a\0", "a\n", "ü" * 128, "\ud800"):
        with pytest.raises(PeerError, match="device name"):
            check_device_name(name)


def test_labels_are_checked_by_key_and_length() -> None:
    check_labels(LABELS)
    for labels in ({"a b": ""}, {"": ""}, {"a": "x" * 256}):
        with pytest.raises(PeerError, match="label"):
            check_labels(labels)
