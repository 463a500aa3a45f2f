"""What becomes of a registry's answers."""

from __future__ import annotations

import httpx
import pytest

from dfud.cli.client import CliError, checked

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


def test_what_has_no_body_is_nothing() -> None:
    assert checked(httpx.Response(204)) is None
    assert checked(httpx.Response(200, headers=JSON, content=b"[]")) == []
