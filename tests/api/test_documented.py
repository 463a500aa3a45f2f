"""docs/plugins.md names every method of a store, every change, every hook and every event of another process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from dfud.api import BlobPlace, BlobWriter, Change, Hooks, Store

TEXT = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text("utf-8")
EVENTS = ("DeviceStateChanged", "DocumentChanged", "Told", "Missed", "Aged")


def public(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")]


@pytest.mark.parametrize(
    "name",
    [
        *public(Store),
        *public(BlobPlace),
        *public(BlobWriter),
        *public(Hooks),
        *(change.__name__ for change in get_args(Change)),
        *EVENTS,
    ],
)
def test_it_is_named(name: str) -> None:
    assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", TEXT), f"docs/plugins.md does not name {name}"
