"""Names of things."""

from __future__ import annotations

import pytest

from dfud.errors import PeerError
from dfud.model.names import check_app_name, check_device_name, check_labels

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


def test_labels_are_checked_by_key_and_length() -> None:
    check_labels(LABELS)
    for labels in ({"a b": ""}, {"": ""}, {"a": "x" * 256}):
        with pytest.raises(PeerError, match="label"):
            check_labels(labels)
