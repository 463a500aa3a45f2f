"""What the specs of app and device ask for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.model.desired import Desired, desired_of


@pytest.mark.parametrize(
    ("app", "device", "expected"),
    [
        ({}, {}, Desired()),
        ({"firmware": {"version": "1"}}, {}, Desired("1", origin="app")),
        ({"firmware": {"version": "1"}}, {"firmware": {"version": "2"}}, Desired("2", origin="device")),
        ({"firmware": {"version": "1"}}, {"firmware": None}, Desired()),
        (
            {},
            {"firmware": {"version": "1", "hold": True, "reason": "night only"}},
            Desired("1", True, "night only", origin="device"),
        ),
        ({"firmware": {"version": "1", "downloadOnly": True}}, {}, Desired("1", download_only=True, origin="app")),
        ({"firmware": {"version": "1", "build": {"any": 1}}}, {}, Desired("1", origin="app")),
    ],
)
def test_the_device_overrides_the_app_whole(app: dict[str, Any], device: dict[str, Any], expected: Desired) -> None:
    assert desired_of(app, device) == expected


@pytest.mark.parametrize(
    ("firmware", "problem"),
    [
        ("1.0", "not an object"),
        ({}, "version is missing"),
        ({"version": 1}, "version is missing or not text"),
        ({"version": "1", "hold": "yes"}, "hold is not a bool"),
        *(({key: {"any": "x"}}, f"{key} is not understood") for key in ("container", "oci", "hawkbit", "file")),
        *(({"version": "1", key: {}}, f"version and {key} stand") for key in ("container", "oci", "hawkbit", "file")),
    ],
)
def test_what_cannot_be_read_is_a_problem_and_asks_for_nothing(firmware: Any, problem: str) -> None:
    desired = desired_of({"firmware": {"version": "1"}}, {"firmware": firmware})
    assert desired.version == ""
    assert problem in desired.problem


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(st.dictionaries(st.just("firmware"), json_values), st.dictionaries(st.just("firmware"), json_values))
def test_no_spec_makes_it_raise(app: dict[str, Any], device: dict[str, Any]) -> None:
    assert isinstance(desired_of(app, device), Desired)
