"""Names of things: one rule for each kind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfud.errors import PeerError
from dfud.model.names import (
    RULES,
    Kind,
    check_app_name,
    check_device_name,
    check_labels,
    check_name,
)
from dfud.model.text import visible

LABELS = {"zone": "eu", "power": "", "example.com/tier": "gold"}


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


KINDS: list[Kind] = list(RULES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        *(" a", "a ", "a\nb", "a\x1b[31m", "a\x9b", "a\u202eb", "a\u2028b", "a\u200bb", "a\ufeff"),
        *("a\xa0b", "u\u0308", "\ud800", "a\u3164"),
    ],
)
def test_no_name_hides_what_it_is(kind: Kind, name: str) -> None:
    with pytest.raises(PeerError, match="expected"):
        check_name(kind, name)


@pytest.mark.parametrize("kind", ["device", "alias", "version", "channel", "app"])
@pytest.mark.parametrize("name", ["", ".", "..", "...", "/", "a/", "/a", "a//b", "a/../b", "./a", "a/.."])
def test_no_name_leads_elsewhere_in_a_path(kind: Kind, name: str) -> None:
    with pytest.raises(PeerError, match="expected"):
        check_name(kind, name)


@pytest.mark.parametrize("name", ["release/1.2", ".hidden", "1..2", "a/.b", "lamp…", "..a"])
def test_dots_and_slashes_beside_others_are_allowed(name: str) -> None:
    assert check_name("version", name) == name
    assert check_name("device", name) == name


@pytest.mark.parametrize(
    ("kind", "longest"),
    [("app", 63), ("device", 255), ("alias", 255), ("version", 64), ("hardware", 32), ("user", 255), ("label", 255)],
)
def test_lengths_are_counted_in_bytes(kind: Kind, longest: int) -> None:
    assert check_name(kind, "x" * longest)
    with pytest.raises(PeerError, match=f"to {longest} bytes"):
        check_name(kind, "x" * (longest + 1))
    if kind not in ("app", "label"):
        with pytest.raises(PeerError, match=f"to {longest} bytes"):
            check_name(kind, "ü" * (longest // 2 + 1))


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.text(st.one_of(st.characters(), st.sampled_from("./ a:é")), max_size=40))
def test_a_name_is_taken_as_it_is_or_refused_with_what_was_expected(kind: Kind, name: str) -> None:
    try:
        taken = check_name(kind, name)
    except PeerError as error:
        told = str(error)
    else:
        assert taken == name
        assert visible(name) == name and name.strip() == name
        if RULES[kind].part_of_path:
            assert not {"", ".", ".."} & {*name.split("/")}
        return
    assert RULES[kind].what in told and "expected" in told
    assert visible(told) == told, "the error can be shown as it is"


def test_a_user_has_no_colon() -> None:
    with pytest.raises(PeerError, match="none of the characters :"):
        check_name("user", "a:b")


def test_labels_are_checked_by_key_and_length() -> None:
    check_labels(LABELS)
    for labels in ({"a b": ""}, {"": ""}, {"a": "x" * 256}, {"a": "\x1b"}, {"a": " b"}):
        with pytest.raises(PeerError, match="label"):
            check_labels(labels)


def test_labels_from_before_are_not_judged_again() -> None:
    old = {"a": "x\x1b", "b c": "1"}
    check_labels({**old, "new": "1"}, old)
    with pytest.raises(PeerError, match="label a: label value"):
        check_labels({"a": "y\x1b"}, old)
