"""What a device says of itself as attributes, and what an action asks for as a spec."""

from __future__ import annotations

from dfud_hawkbit import desire

from dfud.api import Actual, Device, DeviceView, Metadata


def test_attributes_are_cut_to_what_hawkbit_takes() -> None:
    actual = Actual("a", "d", "1.0", "00" * 32, "esp32c3", attributes={f"k{n}": "v" * 200 for n in range(120)})
    found = desire.attributes_of(DeviceView(Device(Metadata("d", "a", labels={"site": "attic"})), actual), "me")
    assert len(found) == 100
    assert found["dfud.version"] == "1.0"
    assert max(len(v) for v in found.values()) == 128
    few = desire.attributes_of(DeviceView(Device(Metadata("d", "a", labels={"site": "attic"})), None), "me")
    assert few == {"dfud.owner": "me", "label.site": "attic"}


def test_attributes_hold_what_hawkbit_takes_and_keys_that_it_does_not_are_left_out() -> None:
    said = {"a": "<b>", "k" * 129: "x", "with\nline": "x", "smile": "\U0001f600" * 100, "dfud.owner": "somebody"}
    actual = Actual("a", "d", "1.0", "00" * 32, "esp32c3", attributes=said)
    found = desire.attributes_of(DeviceView(Device(Metadata("d", "a")), actual), "me")
    assert set(found) == {"dfud.owner", "dfud.version", "dfud.sha256", "dfud.hardware", "a", "smile"}
    assert (found["a"], found["dfud.owner"]) == ("\u2039b\u203a", "me")
    assert len(found["smile"]) == 64


def test_modes_read_as_what_dfud_does() -> None:
    spec = {"firmware": {"version": "1"}, "other": 1}
    assert desire.with_mode(spec, None, "") == {"other": 1}
    assert desire.with_mode(spec, "2", "") == {"other": 1, "firmware": {"version": "2"}}
    assert desire.with_mode(spec, "2", "window")["firmware"]["downloadOnly"] is True
    assert desire.with_mode(spec, "2", "confirm")["firmware"]["hold"] is True
    both = {"firmware": {"version": "1", "app": "3.2"}}
    assert desire.with_mode(both, "2", "") == {"firmware": {"version": "2", "app": "3.2"}}
    assert desire.with_mode(both, None, "") == {"firmware": {"app": "3.2"}}


