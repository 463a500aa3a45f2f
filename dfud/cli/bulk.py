"""device import, export, count: many devices at once."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec

from dfud.cli import bulk_secrets
from dfud.cli.bulk_files import Line, exported, format_of, read_lines, write_csv, write_jsonl
from dfud.cli.bulk_secrets import SecretsFile
from dfud.cli.client import CliError, Session, checked
from dfud.cli.resources import new_labels, pass_session
from dfud.cli.show import progress_bar
from dfud.model.text import visible

BATCH = 500  # [registry] batch_max may be lower: what is too large for the registry is sent in halves
BATCH_BYTES = 1 << 19
DELAYS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # a registry that restarts or is busy is asked again
WAIT_MAX_S = 60.0
TOO_LARGE = 413
SECTIONS = ("authentication", "credentials")

_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_selector = click.option(
    "-l", "--labels", "--selector", "labels", default="", help="Label selector, such as site=attic."
)


@click.command("import")
@click.argument("file", type=_file)
@click.option(
    "--secrets",
    "secrets_path",
    type=click.Path(path_type=Path),
    help="Make a secret for each device without credentials, and write them to this file (mode 0600).",
)
@click.option("-l", "--labels", "--label", "labels", multiple=True, help="KEY=VALUE for every device; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would be refused.")
@pass_session
@click.pass_context
def device_import(
    ctx: click.Context,
    session: Session,
    file: Path,
    secrets_path: Path | None,
    labels: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Create the devices in FILE: .jsonl with one device a line, or .csv.

    The first line of a .csv names the columns: name, alias (may be repeated), label.KEY, secret, psk (in hexadecimal).

    Run it again after an interruption: devices that exist are left as they are. Exit code 1 if some were refused.
    """
    format_of(file)
    with ExitStack() as stack:
        client = stack.enter_context(session.client())
        secrets = stack.enter_context(bulk_secrets.opened(secrets_path)) if secrets_path and not dry_run else None
        job = _Import(session, client, secrets, new_labels(labels), dry_run)
        began_s = time.monotonic()
        job.run(file)
        left = len(secrets) if secrets is not None else 0
    took_s = time.monotonic() - began_s
    told = f"{job.created} devices {'would be ' if dry_run else ''}created, {job.exists} exist already, {len(job.refused)} refused"
    told += f"; {job.created / took_s:,.0f}/s." if job.created and not dry_run else "."
    about: dict[str, Any] = {"created": job.created, "exists": job.exists, "refused": job.refused, "dryRun": dry_run}
    if secrets is not None:
        told += f" {secrets.made} secrets written to {secrets.path}."
        about |= {"secrets": str(secrets.path), "secretsWritten": secrets.made}
    if left:
        told += f" {left} secrets of an earlier run wait in {secrets_path}.pending: their devices are not in {file}."
    if job.bare and secrets_path is None:
        told += f" {job.bare} of the new ones have no credentials; --secrets FILE makes them."
    session.done(told, **about)
    if job.refused:
        ctx.exit(1)


class _Import:
    """One import. `refused`: {"line", "name", "error"} of each; `bare`: how many were made without credentials."""

    def __init__(
        self, session: Session, client: httpx.Client, secrets: SecretsFile | None, labels: dict[str, str], dry_run: bool
    ) -> None:
        self._session = session
        self._client = client
        self._secrets = secrets
        self._labels = labels
        self._dry_run = dry_run
        self._path = session.registry("devices") + ":batch"
        self._lines: dict[str, int] = {}
        self.created = self.exists = self.bare = 0
        self.refused: list[dict[str, Any]] = []

    def run(self, file: Path) -> None:
        """Register what the file holds. Raises CliError; what was made until then is made, and its secrets are kept."""
        with progress_bar("Registering", total=file.stat().st_size) as progress:
            for batch in self._batches(file):
                self._register(batch)
                progress(batch[-1].line.end, None)

    def _batches(self, file: Path) -> Iterator[list[_Entry]]:
        batch: list[_Entry] = []
        size = 0
        for line in read_lines(file):
            entry = self._entry(line)
            if entry is None:
                continue
            if batch and (len(batch) >= BATCH or size + len(entry.body) > BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(entry)
            size += len(entry.body)
        if batch:
            yield batch

    def _entry(self, line: Line) -> _Entry | None:
        """Return what is sent for a line, or None for one that is refused here."""
        name = line.name
        before = self._lines.setdefault(name, line.number)
        if line.error or (name and before != line.number):
            self._refuse(line.number, name, line.error or f"line {before} names it already")
            return None
        metadata, spec = line.device["metadata"], line.device.get("spec", {})
        held = metadata.get("labels", {})
        if self._labels and isinstance(held, dict):
            metadata = {**metadata, "labels": {**self._labels, **held}}
        bare = isinstance(spec, dict) and not any(section in spec for section in SECTIONS)
        secret = ""
        if bare and name and self._secrets is not None:
            secret = self._secrets.of(name)
            spec = {**spec, "authentication": {"credentials": [{"pass": secret}]}}
        try:
            body = msgspec.json.encode({"metadata": metadata, "spec": spec})
        except (OverflowError, UnicodeError, RecursionError, ValueError) as error:
            self._refuse(line.number, name, f"this cannot be sent: {error}")
            return None
        return _Entry(line, body, secret, bare and not secret)

    def _refuse(self, line: int, name: str, error: str) -> None:
        self.refused.append({"line": line, "name": name, "error": error})
        if not self._session.json:
            # Not click.echo, which writes past the bar: it would take the line with it when it moves.
            sys.stderr.write(visible(f"line {line}: {f'{name}: ' if name else ''}{error}") + "\n")

    def _register(self, batch: list[_Entry]) -> None:
        """Register a batch, in halves if it is too large for the registry."""
        asked = {e.line.name: e.secret for e in batch if e.secret}
        if self._secrets is not None:
            self._secrets.sending(asked)
        try:
            results = self._send(batch)
        except CliError as error:
            if error.status != TOO_LARGE:
                raise
            if len(batch) > 1:
                self._register(batch[: len(batch) // 2])
                self._register(batch[len(batch) // 2 :])
                return
            results = [{"result": "refused", "error": str(error)}]
        right: dict[str, str] = {}
        for entry, result in zip(batch, results, strict=True):
            made = result["result"] == "created"
            if result["result"] == "refused":
                self._refuse(entry.line.number, entry.line.name, result["error"])
            self.created += made
            self.bare += made and entry.bare
            self.exists += result["result"] == "exists"
            if entry.secret and (made or result.get("sameSecret")):
                right[entry.line.name] = entry.secret
        if self._secrets is not None:
            self._secrets.answered(asked, right)

    def _send(self, batch: list[_Entry]) -> list[dict[str, Any]]:
        head = b'{"dryRun":true,"devices":[' if self._dry_run else b'{"devices":['
        body = head + b",".join(entry.body for entry in batch) + b"]}"
        delays = iter(DELAYS_S)
        while True:
            asked_s = 0.0  # how long the registry asks to be left alone
            try:
                answer = self._client.post(self._path, content=body, headers={"content-type": "application/json"})
                header = answer.headers.get("retry-after", "")
                asked_s = min(WAIT_MAX_S, float(header)) if header.isdecimal() else 0.0
                return _results(checked(answer), len(batch))
            except (httpx.HTTPError, CliError) as error:
                delay_s = next(delays, None)
                if isinstance(error, CliError) and not error.transient:
                    raise
                if delay_s is None:
                    why = f"{type(error).__name__}: {error}" if isinstance(error, httpx.HTTPError) else str(error)
                    raise CliError(f"{why}; run it again: devices that were made are left as they are") from None
            time.sleep(max(delay_s, asked_s))


def _results(found: Any, count: int) -> list[dict[str, Any]]:
    """Return the results of a batch. Raises CliError if that is not what was answered: whether they were made is not known."""
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, list) or len(results) != count:
        raise CliError("the answer is none of a registry that takes batches: is it dfud, and up to date?")
    return results


class _Entry(msgspec.Struct, frozen=True):
    """One device to send: its JSON, the secret in it that was made here, whether it has no credentials at all."""

    line: Line
    body: bytes
    secret: str
    bare: bool


@click.command("export")
@_selector
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option(
    "-O",
    "--to",
    type=click.Path(path_type=Path),
    help="File to write, whole or not at all; standard output if not given.",
)
@pass_session
@click.pass_context
def device_export(ctx: click.Context, session: Session, labels: str, form: str, to: Path | None) -> None:
    """Write the devices of the app as `device import` reads them, without credentials.

    csv holds names, aliases and labels; jsonl also annotations and the rest of the spec.
    """
    left: list[str] = []

    def devices() -> Iterator[dict[str, Any]]:
        for found in session.devices(labels):
            if problem := found["status"].get("unreadable"):
                left.append(found["metadata"]["name"])
                session.say(f"{left[-1]} is left out: {problem}", err=True)
            else:
                yield exported(found)

    if to is None:
        _write(devices(), form, _print if sys.stdout.isatty() else sys.stdout.write)
    else:
        count = _write_file(devices(), form, to)
        session.done(f"{count} devices written to {to}.", devices=count, file=str(to), leftOut=left)
    if left:
        ctx.exit(1)


def _write_file(devices: Iterable[dict[str, Any]], form: str, to: Path) -> int:
    """Write the file whole or not at all; return how many devices."""
    temporary = to.with_name(to.name + ".new")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as out:
            count = _write(devices, form, out.write)
        temporary.replace(to)
    except OSError as error:
        raise CliError(f"{to} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _print(line: str) -> None:
    """Print one line on a terminal, where names of older rules may not act."""
    click.echo(visible(line.removesuffix("\n")))


def _write(devices: Iterable[dict[str, Any]], form: str, write: Callable[[str], object]) -> int:
    if form == "jsonl":
        return write_jsonl(devices, write)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        return write_csv(devices, write, spool)


@click.command("count")
@_selector
@pass_session
def device_count(session: Session, labels: str) -> None:
    """Print how many devices the app has, or a selector matches."""
    found = session.request("GET", session.registry("devices") + ":count", params={"labels": labels})
    if session.json:
        session.show(found)
    else:
        session.say(str(found["count"]))
