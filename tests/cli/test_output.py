"""Results that nobody can take: a full disk is one error, a reader that has gone ends the command in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DFUCTL = [sys.executable, "-X", "dev", "-m", "dfud.cli"]
TELLING = [("--help",), ("--version",), ("update", "--help"), ("context",), ("-o", "json", "context"), ("-o", "json", "status")]


@pytest.fixture
def gone() -> Iterator[int]:
    """Lend a pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def dfuctl(tmp_path: Path, *arguments: str, stdout: int, **more: str) -> tuple[int, str]:
    command = [*DFUCTL, "--config", str(tmp_path / "contexts.toml"), *arguments]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env=os.environ | more)
    return done.returncode, done.stderr


@pytest.mark.parametrize("more", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", TELLING, ids=" ".join)
def test_a_full_disk_is_one_error(tmp_path: Path, arguments: tuple[str, ...], more: dict[str, str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        code, told = dfuctl(tmp_path, *arguments, stdout=full, **more)
    finally:
        os.close(full)
    assert (code, told) == (1, "dfuctl: standard output cannot be written: No space left on device\n")


@pytest.mark.parametrize("arguments", TELLING, ids=" ".join)
def test_a_reader_that_has_gone_is_told_nothing(tmp_path: Path, arguments: tuple[str, ...], gone: int) -> None:
    assert dfuctl(tmp_path, *arguments, stdout=gone) == (1, "")


def test_without_an_output_nothing_is_begun(tmp_path: Path) -> None:
    line = 'exec "$@" >&-'
    command = ["sh", "-c", line, "sh", *DFUCTL, "key", "new", str(tmp_path / "key.pem")]
    done = subprocess.run(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("dfuctl: standard output is closed; ")
    assert not list(tmp_path.iterdir())


def test_an_error_that_cannot_be_told_ends_as_one_that_can(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        command = [*DFUCTL, "--config", str(tmp_path / "contexts.toml"), "app", "list"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, check=False)
    finally:
        os.close(full)
    assert (done.returncode, done.stdout) == (1, b"")
