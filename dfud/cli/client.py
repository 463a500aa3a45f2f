"""Talking to a registry: where it is, with which token, and errors as one sentence."""

from __future__ import annotations

import os
import ssl
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import click
import httpx
import tomlkit

from dfud.errors import DfudError
from dfud.model.names import path_of
from dfud.model.text import visible, visible_json

TIMEOUT_S = 60.0
PAGE = 1000  # the most that a list gives at once
API = "/api/dfu/v1"
APPS = "/api/registry/v1alpha1/apps"
TRANSIENT = (429, 502, 503, 504)


class CliError(DfudError):
    """What the user is told, in one sentence. status: of the answer, 0 if there was none; kind: what the registry calls it.

    transient: the same may succeed later, since the registry is away, restarting or busy. exit_code: what dfuctl ends with.
    """

    exit_code = 1

    def __init__(self, message: str, *, status: int = 0, kind: str = "", transient: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.transient = transient


class NobodyError(CliError):
    """A selector means no device; nothing was done."""

    exit_code = 5  # docs/cli.md, "Exit codes"

    def __init__(self, app: str, labels: str) -> None:
        super().__init__(f"no device of app {app} matches {labels!r}; nothing was done")


class Contexts:
    """The registries that the user has logged in to; a file that only they can read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
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


@cache
def trust(url: str, ca: str | None) -> ssl.SSLContext:
    """Return whom a client of `url` trusts: the authorities in the file or directory `ca`, or the public ones.

    Without TLS nobody, since reading the public ones takes longer than most commands. Raises OSError.
    """
    if not url.lower().startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not ca:
        return httpx.create_ssl_context()
    is_directory = Path(ca).is_dir()
    return ssl.create_default_context(cafile=None if is_directory else ca, capath=ca if is_directory else None)


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
        """The app that a command is about. It needs no login: signing and packaging ask no registry."""
        found = self._app
        if not found:
            data = self.contexts.read()
            chosen = self._context or data.get("current")
            found = data.get("contexts", {}).get(chosen, {}).get("app")
        if not found:
            raise CliError("which app? give --app, or set one for good with `dfuctl context --app NAME`")
        return str(found)

    def path(self, base: str, *names: str) -> str:
        """Return `base` with `names` behind it, each encoded whole."""
        return path_of(base, *names)

    def api(self, *names: str) -> str:
        """Return the path of dfud's own API for the app, with `names` encoded behind it."""
        return path_of(API, "apps", self.app, *names)

    def registry(self, *names: str) -> str:
        """Return the path of the app in the registry, with `names` encoded behind it."""
        return path_of(APPS, self.app, *names)

    @contextmanager
    def client(self, *, timeout_s: float | None = TIMEOUT_S) -> Iterator[httpx.Client]:
        """Yield a client; what goes wrong on the way becomes a CliError."""
        _, context = self.contexts.current(self._context)
        url = context["url"]
        headers = {"authorization": f"Bearer {context['token']}"}
        try:
            verify = trust(url, context.get("ca"))
            with httpx.Client(base_url=url, headers=headers, timeout=timeout_s, verify=verify) as client:
                yield client
        except httpx.TimeoutException:
            raise CliError(f"{url} did not answer in time", transient=True) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise CliError(f"{url} cannot be reached: {error}", transient=True) from None

    def request(self, method: str, path: str, **options: Any) -> Any:
        """Send one request; return the decoded JSON, or None if there is no body."""
        with self.client() as client:
            return checked(client.request(method, path, **options))

    def pages(self, path: str, **params: Any) -> Iterator[list[dict[str, Any]]]:
        """Yield a whole list, page by page; no page is empty."""
        offset = 0
        while page := self.request("GET", path, params={**params, "limit": PAGE, "offset": offset}):
            yield page
            if len(page) < PAGE:
                return
            offset += PAGE

    def devices(self, labels: str) -> Iterator[dict[str, Any]]:
        """Yield all devices of the app, by name, as they are read: one that is deleted meanwhile moves no other out of sight."""
        first = after = ""
        while page := self.request(
            "GET", self.registry("devices"), params={"labels": labels, "limit": PAGE, "after": after}
        ):
            if after and page[0]["metadata"]["name"] == first:
                raise CliError("the registry is too old for lists that go on behind a device: bring dfud up to date")
            yield from page
            if len(page) < PAGE:
                return
            first, after = page[0]["metadata"]["name"], page[-1]["metadata"]["name"]

    def done(self, message: str, **fields: Any) -> None:
        """Say that something was done: a sentence on standard error, or `fields` as JSON."""
        if self.json:
            self.show(fields)
        else:
            self.say(message, err=True)

    def show(self, value: Any) -> None:
        """Print as JSON for `-o json`."""
        click.echo(visible_json(value, 2))

    def say(self, text: str, *, err: bool = False) -> None:
        """Print one line. What is hidden in it is shown as an escape, whoever chose it."""
        click.echo(visible(text), err=err)


def checked(answer: httpx.Response) -> Any:
    """Return the decoded body; raise CliError with the registry's own sentence for an error."""
    if answer.is_success:
        if not answer.content or "json" not in answer.headers.get("content-type", ""):
            return None
        try:
            return answer.json()
        except ValueError:
            raise CliError("the registry's answer ended before it was whole; try again", transient=True) from None
    kind = ""
    try:
        message = str(answer.json()["message"])
        kind = str(answer.json().get("error", ""))
    except (ValueError, KeyError, TypeError):
        message = f"HTTP {answer.status_code}"
    if answer.status_code == 404 and message == "Referenced a non-existing entity":
        message = "no such app, or one that this token may not see; `dfuctl app list` shows what it sees"
    if answer.status_code == 403 and message == "Authentication failed":
        message = "the token is not accepted; run `dfuctl login URL`"
    raise CliError(message, status=answer.status_code, kind=kind, transient=answer.status_code in TRANSIENT)
