"""Talking to a registry: where it is, with which token, and errors as one sentence."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import tomlkit

from dfud.errors import DfudError

TIMEOUT_S = 60.0


class CliError(DfudError):
    """What the user is told, in one sentence."""


class Contexts:
    """The registries that the user has logged in to; a file that only he can read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise CliError(f"{self.path} cannot be read: {error}") from error

    def write(self, data: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self.path.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(tomlkit.dumps(data))
        os.replace(temporary, self.path)

    def current(self, name: str | None) -> tuple[str, dict[str, Any]]:
        """Return (name, {"url", "token", "app"?}). Raises CliError that says what to do."""
        data = self.read()
        chosen = name or data.get("current")
        found = data.get("contexts", {}).get(chosen) if chosen else None
        if found is None:
            raise CliError(f"no context {chosen}" if chosen else "not logged in; run `dfuctl login URL`")
        return str(chosen), dict(found)


class Session:
    """One invocation: the chosen context, the output format, and the HTTP client."""

    def __init__(self, contexts: Contexts, context: str | None, app: str | None, output: str) -> None:
        self.contexts = contexts
        self._context = context
        self._app = app
        self.output = output

    @property
    def json(self) -> bool:
        return self.output == "json"

    @property
    def app(self) -> str:
        found = self._app or self.contexts.current(self._context)[1].get("app")
        if not found:
            raise CliError("which app? give --app, or set one for good with `dfuctl context --app NAME`")
        return str(found)

    @contextmanager
    def client(self, *, timeout_s: float | None = TIMEOUT_S) -> Iterator[httpx.Client]:
        """Yield a client; what goes wrong on the way becomes a CliError."""
        _, context = self.contexts.current(self._context)
        url = context["url"]
        headers = {"authorization": f"Bearer {context['token']}"}
        verify: Any = context.get("ca") or True
        try:
            with httpx.Client(base_url=url, headers=headers, timeout=timeout_s, verify=verify) as client:
                yield client
        except httpx.TimeoutException:
            raise CliError(f"{url} did not answer in time") from None
        except httpx.HTTPError as error:
            raise CliError(f"{url} cannot be reached: {error}") from None

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Send one request; return the decoded JSON, or None if there is no body."""
        with self.client() as client:
            return checked(client.request(method, path, **options))

    def done(self, message: str, **fields: Any) -> None:
        """Say that something was done: a sentence on standard error, or `fields` as JSON."""
        if self.json:
            self.show(fields)
        else:
            click.echo(message, err=True)

    def show(self, value: Any) -> None:
        """Print as JSON for `-o json`."""
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def checked(answer: httpx.Response) -> Any:
    """Return the decoded body; raise CliError with the registry's own sentence for an error."""
    if answer.is_success:
        return answer.json() if answer.content and "json" in answer.headers.get("content-type", "") else None
    try:
        message = answer.json()["message"]
    except (ValueError, KeyError, TypeError):
        message = f"HTTP {answer.status_code}"
    if answer.status_code == 403 and message == "Authentication failed":
        message = "the token is not accepted; run `dfuctl login URL`"
    raise CliError(message)
