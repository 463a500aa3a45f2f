"""The files of `dfuctl device import` and `export`: lines of CSV or JSON to devices and back. Pure but for the file itself."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from dfud.cli.client import CliError
from dfud.model.credentials import PSK_BYTES

COLUMNS = "name, alias (may be repeated), label.KEY, secret, psk"
LABEL = "label."
SECRET_SECTIONS = ("authentication", "credentials")


class Line(msgspec.Struct):
    """One device of a file; number: of its (last) line, from 1. end: how many bytes of the file were read with it.

    error: why it is no device, or "".
    """

    number: int
    device: dict[str, Any]
    end: int
    error: str = ""

    @property
    def name(self) -> str:
        """The device's name, "" where the line gives none that can be one."""
        metadata = self.device.get("metadata")
        found = metadata.get("name") if isinstance(metadata, dict) else None
        return found if isinstance(found, str) else ""


def format_of(path: Path) -> str:
    """Return "csv" or "jsonl". Raises CliError."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("csv", "jsonl"):
        raise CliError(f"{path}: expected a name that ends in .csv or .jsonl")
    return kind


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the devices of a file, one at a time. Raises CliError for what makes the rest of it unreadable, too."""
    read = _read_csv if format_of(path) == "csv" else _read_jsonl
    try:
        with path.open("rb") as file:
            yield from read(path, file)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from None


def _read_jsonl(path: Path, file: IO[bytes]) -> Iterator[Line]:
    end = 0
    for number, data in enumerate(file, 1):
        end += len(data)
        if not data.strip():
            continue
        try:
            found = json.loads(data, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            yield Line(number, {}, end, f"this is not JSON: {error}")
            continue
        wrong = not isinstance(found, dict) or not isinstance(found.get("metadata"), dict)
        told = 'expected a device: {"metadata": {"name": ...}, "spec": {...}}' if wrong else ""
        yield Line(number, found if isinstance(found, dict) else {}, end, told)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _read_csv(path: Path, file: IO[bytes]) -> Iterator[Line]:
    end = 0

    def texts() -> Iterator[str]:
        nonlocal end
        for number, data in enumerate(file, 1):
            end += len(data)
            try:
                yield data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise CliError(f"{path}: line {number} is not UTF-8") from None

    rows = csv.reader(texts(), strict=True)
    columns: list[str] = []
    try:
        for row in rows:
            if not row:
                continue
            if not columns:
                columns = _columns(path, row)
            elif len(row) != len(columns):
                told = f"{len(row)} cells, expected {len(columns)} as in the heading"
                yield Line(rows.line_num, {}, end, told)
            else:
                yield _of_cells(rows.line_num, end, columns, row)
    except csv.Error as error:
        raise CliError(f"{path}: line {rows.line_num}: {error}") from None


def _columns(path: Path, heading: list[str]) -> list[str]:
    columns = [cell.strip() for cell in heading]
    for number, column in enumerate(columns):
        if not (column in ("name", "alias", "secret", "psk") or (column.startswith(LABEL) and column != LABEL)):
            raise CliError(f"{path}: column {column[:80]!r}, expected {COLUMNS}")
        if column != "alias" and column in columns[:number]:
            raise CliError(f"{path}: column {column!r} is there twice")
    if "name" not in columns:
        raise CliError(f"{path}: no column 'name' in the heading, expected {COLUMNS}")
    return columns


def _of_cells(number: int, end: int, columns: list[str], row: list[str]) -> Line:
    labels: dict[str, str] = {}
    spec: dict[str, Any] = {}
    credentials: list[dict[str, Any]] = []
    name, error = "", ""
    for column, cell in zip(columns, row, strict=True):
        if column == "name":
            name = cell
        elif not cell:
            continue
        elif column == "alias":
            spec.setdefault("alias", []).append(cell)
        elif column == "secret":
            credentials.append({"pass": cell})
        elif column == "psk":
            try:
                key = bytes.fromhex(cell)
            except ValueError:
                key = b""
            if len(key) != PSK_BYTES:
                error = (
                    f"psk: expected {PSK_BYTES} bytes in hexadecimal"  # without the cell: it may be one but for a digit
                )
            credentials.append({"psk": {"key": base64.b64encode(key).decode()}})
        else:
            labels[column.removeprefix(LABEL)] = cell
    if credentials:
        spec["authentication"] = {"credentials": credentials}
    return Line(number, {"metadata": {"name": name, "labels": labels}, "spec": spec}, end, error)


# Out


def exported(found: dict[str, Any]) -> dict[str, Any]:
    """Return what of a device can be imported elsewhere: what its users said of it, without credentials, hashed or not."""
    kept = {key: value for key, value in found["metadata"].items() if key in ("name", "labels", "annotations")}
    return {"metadata": kept, "spec": {k: v for k, v in found["spec"].items() if k not in SECRET_SECTIONS}}


def write_jsonl(devices: Iterable[dict[str, Any]], write: Callable[[str], object]) -> int:
    """Write devices, one a line; return how many."""
    count = 0
    for device in devices:
        write(json.dumps(device, separators=(",", ":")) + "\n")
        count += 1
    return count


def write_csv(devices: Iterable[dict[str, Any]], write: Callable[[str], object], spool: IO[str]) -> int:
    """Write names, aliases and labels; return how many devices. spool: an empty file, since the labels are known at the end."""
    keys: set[str] = set()
    most = count = 0
    for device in devices:
        labels = device["metadata"].get("labels", {})
        found = device["spec"].get("alias")
        aliases = [alias for alias in found if isinstance(alias, str)] if isinstance(found, list) else []
        keys |= labels.keys()
        most = max(most, len(aliases))
        count += 1
        spool.write(json.dumps([device["metadata"]["name"], aliases, labels]) + "\n")
    spool.seek(0)
    ordered = sorted(keys)
    write(_csv_line(["name", *["alias"] * most, *(LABEL + key for key in ordered)]))
    for line in spool:
        name, aliases, labels = json.loads(line)
        write(_csv_line([name, *aliases, *[""] * (most - len(aliases)), *(labels.get(key, "") for key in ordered)]))
    return count


def _csv_line(cells: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()
