"""A rollout's spec: safe where it is silent, and every mistake is named by its field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.errors import PeerError
from dfud.model.rollout import DEFAULT_WAVES, OnError, Threshold
from dfud.model.rollout_spec import read_plan_untrusted


def test_what_is_left_out_is_safe() -> None:
    plan = read_plan_untrusted({"firmware": "1.1"})
    assert [w.percent for w in plan.waves] == [1, 10, 100]
    assert all(w.error == Threshold(5.0, at_least=3) for w in DEFAULT_WAVES)
    assert plan.on_error is OnError.PAUSE and not plan.promote and not plan.whom.dynamic


def test_a_whole_spec_is_read() -> None:
    plan = read_plan_untrusted(
        {
            "firmware": "1.3",
            "devices": {"selector": "zone=eu", "running": ["1.0", "1.1"], "attributes": {"rev": "b"}, "dynamic": True},
            "waves": [
                {"selector": "canary", "soakS": 3600, "approval": True},
                {"count": 10, "error": {"count": 2}},
                {"percent": 100, "success": {"percent": 99.5}},
            ],
            "start": "2026-12-01T08:00:00+01:00",
            "windows": [{"from": "22:00", "to": "04:00"}],
            "timeZone": {"label": "tz", "default": "Europe/Berlin"},
            "perMinute": 60,
            "transfers": 100,
            "onError": "revert",
            "promote": True,
            "priority": 5,
        }
    )
    assert plan.whom.running == {"1.0", "1.1"} and plan.whom.attributes == (("rev", "b"),)
    assert plan.waves[0].approval and plan.waves[1].error == Threshold(0.0, 2, 3) and plan.waves[2].success.percent == 99.5
    assert plan.zone_label == "tz" and str(plan.zone) == "Europe/Berlin"
    assert plan.start_s == 1796108400.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"firmware": ""}, r"spec.firmware: '', expected text"),
        ({"firmware": "a\nb"}, "version"),
        ({"waves": []}, "spec.waves: expected a list of 1 to 32"),
        ({"waves": [{}]}, r"spec.waves\[0\]: expected exactly one of percent, count and selector; an empty wave"),
        ({"waves": [{"percent": 101}]}, r"spec.waves\[0\].percent: '101', expected a number from 0 to 100"),
        ({"waves": [{"percent": 10}, {"percent": 10}]}, r"spec.waves\[1\].percent: 10 of all, as the one before"),
        ({"waves": [{"count": 5}, {"count": 4}]}, r"spec.waves\[1\].count"),
        ({"waves": [{"percent": 1, "sucess": {}}]}, r"spec.waves\[0\].sucess: not known, expected one of approval, count"),
        ({"waves": [{"percent": 1, "error": {"percent": 5, "count": 1}}]}, r"spec.waves\[0\].error: expected percent or count"),
        ({"waves": [{"percent": 1, "error": {"count": 0}}]}, r"error.count: 0, expected at least 1"),
        ({"waves": [{"percent": 1, "soakS": -1}]}, r"soakS: '-1', expected a number"),
        ({"waves": [{"percent": True}]}, r"percent: 'True', expected a number"),
        ({"waves": [{"selector": "a=="}]}, None),
        ({"waves": [{"selector": "a b"}]}, "label selector"),
        ({"windows": [{"from": "01:00", "to": "01:00"}]}, r"spec.windows\[0\]: .* it never opens"),
        ({"timeZone": "Mars/Olympus"}, "spec.timeZone: 'Mars/Olympus' is no time zone"),
        ({"timeZone": {"label": "tz", "attribute": "tz"}}, "spec.timeZone: expected a label or an attribute"),
        ({"start": "2026-12-01T08:00:00"}, "spec.start: .* expected a time with its offset"),
        ({"start": "2026-12-02T08:00:00Z", "end": "2026-12-01T08:00:00Z"}, "spec.end: not behind spec.start"),
        ({"onError": "explode"}, "spec.onError: 'explode', expected one of pause, revert"),
        ({"devices": {"names": ["a"], "selector": "x"}}, "spec.devices.names: an explicit list stands alone"),
        ({"devices": {"names": []}}, "spec.devices.names"),
        ({"devices": {"running": "1.0"}}, "spec.devices.running: '1.0', expected a list"),
        ({"priority": 1001}, "spec.priority"),
        ({"perMinute": 1.5}, "spec.perMinute"),
        ({"speed": 3}, "spec.speed: not known"),
    ],
)
def test_a_mistake_is_named_by_its_field(changes: dict[str, Any], said: str | None) -> None:
    spec = {"firmware": "1.1", **changes}
    if said is None:
        read_plan_untrusted(spec)
        return
    with pytest.raises(PeerError, match=said):
        read_plan_untrusted(spec)


KEYS = ["firmware", "mode", "devices", "waves", "percent", "count", "selector", "windows", "timeZone", "label", "start", "names", "x"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
)


@given(st.dictionaries(st.sampled_from(KEYS), JSON))
def test_no_value_makes_the_reader_raise_anything_else(spec: dict[str, Any]) -> None:
    try:
        read_plan_untrusted({"firmware": "1.1", **spec})
    except PeerError:
        return
