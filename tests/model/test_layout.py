"""How large an image may be: dfud's layout by default, what the app says of its hardware otherwise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dfud.errors import PeerError
from dfud.model.layout import SLOT_BYTES, TRAILER_BYTES, too_large
from dfud.registry.rules import RecordLimits, check_spec_untrusted

FORMAT = (Path(__file__).parents[2] / "bootloader" / "FORMAT.md").read_text("utf-8")
LARGEST = 1_765_376


def layout(**limits: Any) -> dict[str, Any]:
    return {"layout": {"imageMaxBytes": limits}}


def test_the_default_is_the_slot_of_the_bootloaders_format() -> None:
    slots = {int(size, 16) for size in re.findall(r"\| ota_\d \|[^|]*\|[^|]*\| (0x[0-9a-f]+) \|", FORMAT)}
    assert slots == {SLOT_BYTES["esp32c3"]} == {1_769_472}
    assert f"The largest image is the slot's size less {TRAILER_BYTES}" in FORMAT
    assert SLOT_BYTES["esp32c3"] - TRAILER_BYTES == LARGEST


@pytest.mark.parametrize("hardware", ["esp32c3", "esp32c3-board1", "ESP32-C3"])
def test_what_a_slot_does_not_hold_is_told_with_both_numbers(hardware: str) -> None:
    assert too_large({}, hardware, LARGEST) == ""
    told = too_large({}, hardware, LARGEST + 16)
    assert "has 1765392 bytes, expected at most 1765376" in told
    assert "spec.layout.imageMaxBytes" in told


@pytest.mark.parametrize("hardware", ["esp32s3", "esp32", "toaster", "esp32c6-esp32c3"])
def test_dfud_knows_no_slot_of_other_hardware(hardware: str) -> None:
    assert too_large({}, hardware, 1 << 30) == ""


def test_what_the_app_says_counts_the_boards_name_before_the_chips() -> None:
    spec = layout(**{"ESP32-C3": 3_000_000, "esp32c3-small": 1_000_000, "esp32s3": 5_000_000})
    assert too_large(spec, "esp32c3", 3_000_000) == ""
    assert too_large(spec, "esp32c3-big", 3_000_000) == ""
    assert "expected at most 3000000 for esp32c3" in too_large(spec, "esp32c3", 3_000_016)
    assert "expected at most 1000000 for esp32c3-small" in too_large(spec, "esp32c3-small", 1_000_016)
    assert "expected at most 5000000" in too_large(spec, "esp32s3-1", 5_000_016)
    assert too_large(layout(esp32s3=1), "esp32c3", LARGEST + 1) != "", "it says nothing of this hardware"


@pytest.mark.parametrize("spec", [{}, {"layout": "mine"}, {"layout": {"rows": 3}}, layout()])
def test_an_app_that_says_nothing_of_it_has_dfuds_layout(spec: dict[str, Any]) -> None:
    check_spec_untrusted(spec, RecordLimits())
    assert too_large(spec, "esp32c3", LARGEST + 1)


@pytest.mark.parametrize(
    ("said", "place"),
    [
        (3, "spec.layout.imageMaxBytes: expected an object"),
        ({"esp32c3": "2M"}, "spec.layout.imageMaxBytes['esp32c3']: expected an integer"),
        ({"esp32c3": True}, "expected an integer"),
        ({"esp32c3": 0}, "expected an integer from 1"),
        ({"esp32c3": 1 << 32}, "expected an integer from 1"),
        ({"esp32c3": 1.5}, "expected an integer"),
        ({"": 1}, "spec.layout.imageMaxBytes: hardware"),
        ({"esp32c3": 1, "ESP32-C3": 2}, "esp32c3 is there twice"),
        ({f"board{n}": 1 for n in range(65)}, "65 kinds of hardware"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_place(said: Any, place: str) -> None:
    spec = {"layout": {"imageMaxBytes": said}}
    with pytest.raises(PeerError, match=re.escape(place)):
        check_spec_untrusted(spec, RecordLimits())
    check_spec_untrusted(spec, RecordLimits(), spec)  # stored under an older rule: the app can still be changed
    with pytest.raises(PeerError, match=re.escape(place)):
        too_large(spec, "esp32c3", 1)
