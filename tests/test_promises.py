"""docs/promises.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dfud.cli.rollouts import EXIT_STOPPED
from dfud.cli.watch import EXIT_OTHERWISE, EXIT_WAITING
from dfud.wire.messages import Type

ROOT = Path(__file__).parents[1]
ROWS = [
    line for line in (ROOT / "docs" / "promises.md").read_text().splitlines() if re.match(r"\| (?!answer \||---)", line)
]


def test_no_answer_is_left_out() -> None:
    """Every condition and reason of a status, every command, every way of refusing to be good is in the document."""
    document = (ROOT / "docs" / "promises.md").read_text()
    status = (ROOT / "dfud" / "registry" / "status.py").read_text()
    shown = set(re.findall(r'_condition\("(\w+)"', status)) | set(re.findall(r'_condition\("\w+", "\w+", "(\w+)"', status))
    assert len(shown) > 10
    # What stands beside its condition in every row; the states of an update are named as such.
    left = {one for one in shown - {"Crashed", "Contradiction", "Replaced"} if f"`{one}`" not in document}
    assert not left, f"docs/promises.md says nothing of {sorted(left)}"
    for command in Type:
        assert f"*{command.name.lower()}*" in document, command
    for code in {0, EXIT_OTHERWISE, EXIT_WAITING, EXIT_STOPPED}:
        assert re.search(rf"^\| (exit code )?{code}\b", document, re.MULTILINE), f"exit code {code}"


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
