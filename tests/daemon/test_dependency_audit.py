"""What CI makes of pip-audit's answers: a finding fails, a service that is away is said and never taken for a clean bill."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit"


def judge(code: int, output: str, errors: str = "") -> tuple[int, str]:
    loader = importlib.machinery.SourceFileLoader("ci_audit", str(SCRIPT))
    spec = importlib.util.spec_from_loader("ci_audit", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    found: tuple[int, str] = module.judge(code, output, errors)
    return found


def report(*dependencies: dict[str, Any]) -> str:
    return json.dumps({"dependencies": list(dependencies), "fixes": []})


FINE = {"name": "trio", "version": "0.35.0", "vulns": []}
SKIPPED = {"name": "quart", "skip_reason": "Dependency not found on PyPI and could not be audited: quart (0.22.0)"}
BAD = {"name": "h11", "version": "0.1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["0.2"], "aliases": [], "description": ""}]}


@pytest.mark.parametrize(
    ("code", "output", "status", "said"),
    [
        (0, report(FINE), 0, "1 packages, nothing known against them"),
        (0, report(FINE, SKIPPED), 0, "NOT looked up: quart"),
        (1, report(FINE, BAD, SKIPPED), 1, "h11 0.1: PYSEC-1, fixed in 0.2"),
        (0, report(SKIPPED), 0, "NOT DONE, the vulnerability service knows none of the 1 packages"),
        (1, "", 0, "NOT DONE, the vulnerability service cannot be reached: connection refused"),
        (0, "garbage", 1, "said nothing that can be read"),
    ],
)
def test_the_audits_answer_is_judged(code: int, output: str, status: int, said: str) -> None:
    found = judge(code, output, "Traceback\nconnection refused\n")
    assert found[0] == status
    assert said in found[1]
