"""What becomes of a registry's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from dfud.cli import jobs
from dfud.cli.client import CliError, Contexts, Session, checked
from dfud.cli.jobs import finish, start

JSON = {"content-type": "application/json"}


def test_half_an_answer_is_none() -> None:
    with pytest.raises(CliError, match="ended before it was whole") as found:
        checked(httpx.Response(200, headers=JSON, content=b'[{"metadata": {}}, {"meta'))
    assert found.value.transient


@pytest.mark.parametrize(
    ("status", "content", "message", "transient"),
    [
        (409, b'{"message": "it has changed"}', "it has changed", False),
        (403, b'{"message": "Authentication failed"}', "the token is not accepted; run `dfuctl login URL`", False),
        (502, b"<html>", "HTTP 502", True),
        (500, b"[]", "HTTP 500", False),
        (429, b'{"message": "too many"}', "too many", True),
        (404, b'{"message": {"no": "text"}}', "{'no': 'text'}", False),
    ],
)
def test_an_error_is_one_sentence(status: int, content: bytes, message: str, transient: bool) -> None:
    with pytest.raises(CliError) as found:
        checked(httpx.Response(status, headers=JSON, content=content))
    assert (str(found.value), found.value.status, found.value.transient) == (message, status, transient)


class Answers(Session):
    """A registry that answers a group update so, one look after the other; None: it is away."""

    def __init__(self, directory: Path, *answers: dict[str, Any] | None) -> None:
        super().__init__(Contexts(directory / "contexts.toml"), None, "lamps", "text")
        self.answers = list(answers)

    def request(self, method: str, path: str, **options: Any) -> Any:
        answer = self.answers.pop(0)
        if answer is None:
            raise CliError("http://x cannot be reached", transient=True)
        return JOB | answer


JOB = {"job": "3", "state": "running", "matched": 5, "changed": 0, "unchanged": 0}


def test_a_group_update_is_watched_over_a_registry_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "LOOK_S", 0.0)
    session = Answers(tmp_path, {}, {"changed": 2}, None, {"changed": 5, "state": "done"})
    assert finish(session, start(session, "site=attic", None))["changed"] == 5
    assert "cannot be reached; the job goes on when it is back" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (({"matched": 0, "state": "done"},), "no device of app lamps matches 'site=attic'; nothing was done"),
        (({}, {"changed": 2, "state": "cancelled"}), "group update 3 was cancelled; 2 of 5 devices were changed"),
        (({}, {"state": "failed", "problem": "why"}), "group update 3 failed: why; 0 of 5 devices were changed"),
    ],
)
def test_a_group_update_that_does_not_end_well_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: tuple[dict[str, Any], ...], told: str
) -> None:
    monkeypatch.setattr(jobs, "LOOK_S", 0.0)
    session = Answers(tmp_path, *answers)
    with pytest.raises(CliError) as found:
        finish(session, start(session, "site=attic", None))
    assert str(found.value) == told


@pytest.mark.parametrize("odd", [b"\xff", b"[a", b"a = " + b"9" * 5000, b"a = " + b"[" * 5000], ids=len)
def test_contexts_that_cannot_be_read_are_named(tmp_path: Path, odd: bytes) -> None:
    path = tmp_path / "contexts.toml"
    path.write_bytes(odd)
    with pytest.raises(CliError, match=r"contexts\.toml cannot be read"):
        Contexts(path).read()


def test_what_has_no_body_is_nothing() -> None:
    assert checked(httpx.Response(204)) is None
    assert checked(httpx.Response(200, headers=JSON, content=b"[]")) == []
