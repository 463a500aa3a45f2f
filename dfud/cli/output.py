"""Standard output as a shell expects it: what cannot be written is one error, and a reader that has gone ends the command in silence.

Not an OSError: between a command and its output stands much that takes one for the network's.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class OutputError(Exception):
    """fd: of the stream that took no more; `gone`: its reader has closed it, and wants no more."""

    def __init__(self, fd: int, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.fd = fd
        self.gone = error.errno == errno.EPIPE


class _Output(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(self.fileno(), error) from None


def run(work: Callable[[], None]) -> None:
    """Do `work`, all of whose output is written when this returns or raises SystemExit. It ends with exit code 1 if it cannot be."""
    if sys.stdout is None:
        _tell("standard output is closed; give it a file, a pipe or /dev/null")
        sys.exit(1)
    try:
        with _guarded("stdout"), _guarded("stderr"):
            work()
    except OutputError as error:
        if error.fd == 1 and not error.gone:
            _tell(f"standard output cannot be written: {error}")
        sys.exit(1)


@contextmanager
def _guarded(name: str) -> Iterator[None]:
    before = getattr(sys, name)
    fd = _file_of(before)
    if fd < 0:
        yield
        return
    before.flush()
    made = io.TextIOWrapper(
        io.BufferedWriter(_Output(fd, "w", closefd=False)),
        encoding=before.encoding,
        errors=before.errors,
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )
    setattr(sys, name, made)
    try:
        try:
            yield
        finally:
            made.flush()
    except OutputError as error:
        if error.fd == fd:
            # What it still holds goes nowhere, and nobody tries it again.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, fd)
            os.close(nowhere)
        raise
    finally:
        setattr(sys, name, before)
        made.detach().close()


def _file_of(stream: TextIO | None) -> int:
    """Return the descriptor of one that is a file, a pipe or a terminal, -1 of what a test has put in its place."""
    if not isinstance(stream, io.TextIOWrapper):
        return -1
    raw = getattr(stream.buffer, "raw", stream.buffer)
    return raw.fileno() if isinstance(raw, io.FileIO) and raw.fileno() in (1, 2) else -1


def _tell(text: str) -> None:
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"dfuctl: {text}\n")
        sys.stderr.flush()
