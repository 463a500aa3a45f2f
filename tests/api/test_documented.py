"""docs/plugins.md and docs/stores.md name all that a plugin author meets: hooks, methods, changes, models, capabilities, events."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

import dfud.api.own as own_module
import dfud.api.store as store_module
from dfud.api import BlobPlace, BlobWriter, Capability, Change, Hooks, Store

DOCS = Path(__file__).parents[2] / "docs"
STORES = (DOCS / "stores.md").read_text("utf-8")
PLUGINS = (DOCS / "plugins.md").read_text("utf-8")
# What is printed as code names everything that it uses, and explains nothing.
TEXT = re.sub(r"```.*?```", "", STORES, flags=re.DOTALL)
EVENTS = ("DeviceStateChanged", "DocumentChanged", "Told", "Missed", "Aged")


def public(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")]


def names_of_the_store() -> list[str]:
    """All that dfud.api.store and dfud.api.own define: classes and constants, what they have, and the fields of values."""
    found: set[str] = {"Change"}
    for name, value in (vars(store_module) | vars(own_module)).items():
        own: Any = getattr(value, "__module__", None) in (store_module.__name__, own_module.__name__)
        if name.startswith("_") or not (own or name.isupper()):
            continue
        found.add(name)
        if isinstance(value, type) and issubclass(value, msgspec.Struct):
            found.update(value.__struct_fields__)
        elif value in (Store, BlobWriter):
            found.update(n for n in (*vars(value), *value.__annotations__) if not n.startswith("_"))
    return sorted(found)


def test_the_store_has_the_names_that_are_looked_for() -> None:
    assert {"Store", "TOLD_BYTES_MAX", "OwnWave", "prune", "capabilities", "under_way", "unused", "EVERYTHING"} <= set(
        names_of_the_store()
    )


@pytest.mark.parametrize(
    "name", [*names_of_the_store(), *public(BlobPlace), *(c.__name__ for c in get_args(Change)), *EVENTS]
)
def test_docs_stores_names_it(name: str) -> None:
    assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", TEXT), f"docs/stores.md does not name {name}"


@pytest.mark.parametrize("capability", Capability)
def test_every_capability_is_explained(capability: Capability) -> None:
    """By a row of its own that says what it means to declare it, and what not to."""
    row = re.search(rf'^\| `{capability.name}` \("{capability.value}"\) \|([^|]+)\|([^|]+)\|$', TEXT, re.MULTILINE)
    assert row is not None and len(row[1]) > 20 and len(row[2]) > 20, f"docs/stores.md does not explain {capability.name}"


@pytest.mark.parametrize("name", public(Hooks))
def test_docs_plugins_names_it(name: str) -> None:
    assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", PLUGINS), f"docs/plugins.md does not name {name}"
