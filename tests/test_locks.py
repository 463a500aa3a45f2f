"""Two locks: what a daemon in production needs, and all that tests, simulator and benchmarks need besides."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(name: str) -> dict[str, str]:
    found = re.findall(r"^([a-z0-9_.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
    assert found, f"{name} locks nothing"
    return dict(found)


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~ ]", r)[0].lower().replace("_", "-") for r in requirements}


def test_production_installs_what_it_declares_and_no_tool_of_the_tests() -> None:
    project = PROJECT["project"]
    production = set(locked("requirements.lock"))
    needed = names(project["dependencies"]) | names(project["optional-dependencies"]["users"])
    assert needed <= production
    groups = PROJECT["dependency-groups"]
    tools = names(groups["test"]) | names(groups["bench"]) | names(project["optional-dependencies"]["sim"])
    assert not production & (tools - needed)


def test_the_tests_run_what_production_installs() -> None:
    production, tests = locked("requirements.lock"), locked("requirements-test.lock")
    assert production.items() <= tests.items()


def test_every_line_is_held_by_a_hash_and_no_registry_is_named() -> None:
    for name in ("requirements.lock", "requirements-test.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text and "--index" not in text
        for entry in re.split(r"\n(?=[a-z0-9])", text.strip()):
            assert "--hash=sha256:" in entry, entry[:60]
