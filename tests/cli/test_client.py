"""What becomes of a registry's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from dfud.cli.client import CliError, Contexts, Session, checked
from dfud.cli.updates import _update_group

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


class HalfDone(Session):
    """A registry that fails in the middle of a group update. away: and is not there afterwards."""

    def __init__(self, directory: Path, *, away: bool) -> None:
        super().__init__(Contexts(directory / "contexts.toml"), None, "lamps", "text")
        self.away = away
        self.updated = False

    def request(self, method: str, path: str, **options: Any) -> Any:
        if method == "POST":
            self.updated = True
            raise CliError("HTTP 503", status=503, transient=True)
        if self.updated and self.away:
            raise CliError("http://x cannot be reached", transient=True)
        if options["params"]["offset"]:
            return []
        targets = ["1.1" if self.updated and n < 2 else "1.0" for n in range(5)]
        return [
            {"metadata": {"name": f"d{n}"}, "spec": {}, "status": {"firmware": {"target": target}}}
            for n, target in enumerate(targets)
        ]


@pytest.mark.parametrize(
    ("away", "told"),
    [
        (False, "HTTP 503; 2 of 5 devices should run 1.1 now: say it again"),
        (True, "HTTP 503; some of the devices may have been changed: say it again"),
    ],
)
def test_a_group_update_that_fails_in_the_middle_says_how_far_it_came(tmp_path: Path, away: bool, told: str) -> None:
    body = {"firmware": {"version": "1.1"}, "selector": "site=attic"}
    with pytest.raises(CliError) as found:
        _update_group(HalfDone(tmp_path, away=away), "site=attic", body)
    assert str(found.value) == told


def test_what_has_no_body_is_nothing() -> None:
    assert checked(httpx.Response(204)) is None
    assert checked(httpx.Response(200, headers=JSON, content=b"[]")) == []
