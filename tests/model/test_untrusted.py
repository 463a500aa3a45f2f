"""What may be kept of a stranger's JSON, and that whatever may be can be stored and read."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.errors import PeerError
from dfud.model.untrusted import DEPTH_MAX, ENCODED_MAX_BYTES, INT_MAX, INT_MIN, check_json_untrusted


def nested(depth: int, kind: type = list) -> Any:
    value: Any = kind()
    for _ in range(depth - 1):
        value = [value] if kind is list else {"k": value}
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [0, {"b": 1 << 64}]}, r"spec.a\[1\].b: 0x1\d+ is beyond 64 bits"),
        ({"a": INT_MIN - 1}, "spec.a: -0x8000000000000001 is beyond 64 bits"),
        ({"a": float("inf")}, "spec.a: inf is no number"),
        ({"a": float("nan")}, "spec.a: nan is no number"),
        ({"a": ["\ud800"]}, r"spec.a\[0\]: lone surrogate U\+D800"),
        ({"a\udfff": 1}, r"lone surrogate U\+DFFF"),
        ({"k" * 1025: 1}, "text of 1025 bytes, expected at most 1024"),
        ({"a": nested(DEPTH_MAX)}, "more than 32 lists and objects within each other"),
        ({"a": nested(976)}, "more than 32"),
        ({"a": nested(100_000, dict)}, "more than 32"),
        ({"a": "x" * ENCODED_MAX_BYTES}, "spec: 65545 bytes as JSON|spec: 65544 bytes as JSON|expected at most 65536"),
        ({"a": [0] * 70_000}, "spec: more than 65536 bytes as JSON, expected at most 65536"),
        ({"a": ["é" * 20_000, "é" * 20_000]}, "as JSON, expected at most 65536"),
        ({"a": b"x"}, "spec.a: bytes, expected what JSON has"),
        ({1: 2}, "spec: key 0x1, expected text"),
    ],
)
def test_what_may_not_be_kept_is_named_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(PeerError, match=message):
        check_json_untrusted(value, "spec")


def test_the_place_in_an_error_is_short_and_fit_to_be_shown() -> None:
    value: Any = 1 << 100
    for _ in range(30):
        value = {"k" * 1000: value}
    with pytest.raises(PeerError) as caught:
        check_json_untrusted(value, "spec", max_bytes=1 << 20)
    assert len(str(caught.value)) < 400


def test_limits_can_be_reached() -> None:
    check_json_untrusted(nested(DEPTH_MAX), "spec")
    check_json_untrusted([INT_MIN, INT_MAX, 1.5, None, True, "é"], "spec")
    check_json_untrusted("x" * (ENCODED_MAX_BYTES - 2), "spec")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters(), max_size=10), inner, max_size=5),
    max_leaves=30,
)


@given(anything, st.integers(10, 500))
def test_what_is_let_through_is_stored_and_read_the_same(value: Any, max_bytes: int) -> None:
    try:
        check_json_untrusted(value, "spec", max_bytes=max_bytes)
    except PeerError:
        return
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value)) == value
    assert msgspec.json.decode(msgspec.json.encode(value)) == value
    assert len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()) <= max_bytes + 40
