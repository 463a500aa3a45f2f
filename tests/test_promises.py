"""docs/promises.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    line for line in (ROOT / "docs" / "promises.md").read_text().splitlines() if re.match(r"\| (?!answer \||---)", line)
]


@pytest.mark.parametrize("row", ROWS)
def test_each_promise_names_tests_that_there_are(row: str) -> None:
    named = row.rstrip("| ").rpartition("|")[2]
    files = re.findall(r"([\w/]*test_\w+\.py)", named)
    assert files, "no test is named"
    text = ""
    for file in files:
        found = [path for path in ROOT.glob("tests/**/*.py") if path.as_posix().endswith(f"/{file}")]
        assert found, f"{file} is not below tests/"
        text += "".join(path.read_text() for path in found)
    for name in re.findall(r"\b(test_\w+)\b(?!\.py)", named):
        assert re.search(rf"def {name}\(", text), f"{name} is not in {', '.join(files)}"
