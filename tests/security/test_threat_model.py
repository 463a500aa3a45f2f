"""docs/security.md and the tests belong together: each line names the tests that try it, and each of these is named there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
HEADINGS = {
    "A stolen server",
    "A stolen device",
    "A stolen publisher key",
    "A man in the middle",
    "A stranger on the network",
    "A stolen token",
    "A stolen database",
}


def existing_tests() -> dict[str, str]:
    """Return every test function with its file."""
    found = {}
    for path in sorted([*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "dfud" / "testing").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found[node.name] = str(path.relative_to(ROOT))
    return found


def lines_of_the_model() -> dict[str, list[str]]:
    """Return the table lines below each attacker's heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| ") and heading in HEADINGS and not line.startswith(("| ---", "|---", "| he can or cannot")):
            found.setdefault(heading, []).append(line)
    return found


def costs() -> list[list[str]]:
    """Return the cells of each line of the table of what it costs others."""
    page = PAGE.read_text("utf-8")
    section = page[page.index("## What it costs others") : page.index("## How")]
    lines = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| who")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def named(line: str) -> list[str]:
    return re.findall(r"`(test_\w+)`", line)


def test_every_attacker_has_lines_that_say_what_he_can_and_what_he_cannot() -> None:
    found = lines_of_the_model()
    assert set(found) == HEADINGS
    for attacker, lines in found.items():
        verbs = {line.split("|")[1].split()[0].strip(",") for line in lines}
        assert verbs == {"can", "cannot"}, attacker


def test_every_line_is_tried_by_a_test_that_exists() -> None:
    existing = existing_tests()
    for attacker, lines in lines_of_the_model().items():
        for line in lines:
            assert named(line), f"{attacker}: nothing tries {line}"
            assert set(named(line)) <= set(existing), f"{attacker}: {set(named(line)) - set(existing)} is no test"


def test_what_each_can_send_and_what_it_costs_others_is_tried_by_tests_that_exist() -> None:
    existing, lines = existing_tests(), costs()
    assert {cells[0] for cells in lines} == {"a stranger", "a device", "a user", "a plugin"}
    for cells in lines:
        assert len(cells) == 4 and all(cells), f"expected who, what, what it costs and a test: {cells}"
        assert named(cells[3]), f"nothing tries {cells}"
        assert set(named(cells[3])) <= set(existing), f"{set(named(cells[3])) - set(existing)} is no test"


def test_every_key_that_the_costs_name_is_one_of_the_configuration() -> None:
    keys = set(re.findall(r"^(\w+) =", (ROOT / "conf" / "dfud.full.toml").read_text("utf-8"), re.MULTILINE))
    found = {key for cells in costs() for cell in cells[:3] for key in re.findall(r"`(\w+)`", cell)}
    assert found and found <= keys, found - keys


def test_every_attack_is_in_the_model() -> None:
    in_the_page = {name for lines in lines_of_the_model().values() for line in lines for name in named(line)}
    helpers = {"test_the_walk_sees_the_routes"}
    ours = {name for name, where in existing_tests().items() if where.startswith("tests/security/")}
    own = {node.name for node in ast.parse(Path(__file__).read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}
    assert ours - own - helpers - in_the_page == set()
