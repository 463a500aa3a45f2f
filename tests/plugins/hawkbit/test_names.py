"""Targets and devices: one name for each, that a URL, a query and a database take."""

from __future__ import annotations

import string

import pytest
from dfud_hawkbit.names import TARGET_ID_MAX, app_of, forwarded, quoted, target_id
from hypothesis import given
from hypothesis import strategies as st

DEVICE = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)
APP = st.text(string.ascii_lowercase + string.digits + "-.", min_size=1, max_size=63)


@given(APP, DEVICE, APP, DEVICE)
def test_different_devices_are_different_targets_even_where_case_is_ignored(
    app1: str, one: str, app2: str, two: str
) -> None:
    first, second = target_id(app1, one), target_id(app2, two)
    assert (first.lower() == second.lower()) == ((app1, one) == (app2, two))
    assert len(first) <= TARGET_ID_MAX
    assert app_of(first) == app1


@given(APP, st.text(min_size=1, max_size=255))
def test_a_target_is_made_of_what_a_url_and_a_query_take(app: str, device: str) -> None:
    assert set(target_id(app, device)) <= set(string.ascii_letters + string.digits + "_.-:")


@pytest.mark.parametrize(
    ("device", "target"),
    [("lamp1", "a:lamp1"), ("a/b c", "a:a_2fb_20c"), ("..", "a:_2e."), ("x_y", "a:x_5fy")],
)
def test_plain_names_stay_readable(device: str, target: str) -> None:
    assert target_id("a", device) == target


def test_capitals_and_long_names_end_in_a_digest() -> None:
    assert target_id("a", "Lamp1").startswith("a:Lamp1__")
    assert target_id("a", "Lamp1") != target_id("a", "lamp1")
    long = target_id("a" * 63, "ü" * 127)
    assert len(long) == TARGET_ID_MAX and "__" in long


def test_values_of_a_query_are_quoted() -> None:
    assert quoted('1.0 "x"\\;') == '"1.0 \\"x\\"\\\\;"'


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8::1", "2001:0db8:0000:0000:0000:0000:0000:0001"),
        ("fe80::1%eth0", "fe80:0000:0000:0000:0000:0000:0000:0001"),
        ("", ""),
        ("a socket", ""),
        ("1.2.3.4\r\nx: y", ""),
    ],
)
def test_an_address_is_told_as_hawkbit_reads_it(address: str, told: str) -> None:
    assert forwarded(address) == told
