"""The secrets that `dfuctl device import` makes: where they are while it is not known whether their devices were made, and after.

A secret is durable in FILE.pending before its device is sent, and moves to FILE once the registry has said that it was made. So
an interruption at any moment loses none, and FILE holds none that is wrong.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dfud.cli.client import CliError
from dfud.model.credentials import new_secret

HEADING = "name,secret\n"


class SecretsFile:
    """Owns FILE and FILE.pending, both of mode 0600. `made` counts the secrets that this run has added to FILE."""

    def __init__(self, path: Path, file: int, pending: int, old: Mapping[str, str]) -> None:
        self.path = path
        self.made = 0
        self._file = file
        self._pending = pending
        self._old = dict(old)

    def __len__(self) -> int:
        """How many secrets of an earlier run wait for their devices."""
        return len(self._old)

    def of(self, name: str) -> str:
        """Return the secret for a new device: the one that an earlier run may have made it with, or a fresh one."""
        return self._old.get(name) or new_secret()

    def sending(self, secrets: Mapping[str, str]) -> None:
        """Make secrets durable before their devices are sent."""
        fresh = {name: secret for name, secret in secrets.items() if self._old.get(name) != secret}
        _append(self._pending, "".join(json.dumps(pair) + "\n" for pair in fresh.items()))

    def answered(self, asked: Mapping[str, str], right: Mapping[str, str]) -> None:
        """Keep the secrets of devices that have them now; forget the others that were asked for."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(right.items())
        _append(self._file, out.getvalue())
        self.made += len(right)
        for name in asked:
            self._old.pop(name, None)
        if not self._old:  # all that is pending was answered
            os.ftruncate(self._pending, 0)


@contextmanager
def opened(path: Path) -> Iterator[SecretsFile]:
    """Yield the file at `path`, made if it is not there. Raises CliError. FILE.pending stays if something waits in it."""
    waiting = path.with_name(path.name + ".pending")
    file = pending = -1
    try:
        file = _open(path)
        pending = _open(waiting)
        _check(path, file)
        for fd in (file, pending):
            os.fchmod(fd, 0o600)
        found = SecretsFile(path, file, pending, _read_pending(pending))
        yield found
        if not found:
            waiting.unlink(missing_ok=True)
            if os.fstat(file).st_size == len(HEADING):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise CliError(f"{error.filename or path} cannot be written: {error.strerror}") from None
    finally:
        for fd in (pending, file):
            if fd >= 0:
                os.close(fd)


def _open(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise CliError(f"{path} is being written by another import") from None
    except OSError:
        os.close(fd)
        raise
    directory = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # so that the file is there after a power cut as well
    finally:
        os.close(directory)
    return fd


def _check(path: Path, fd: int) -> None:
    """Make sure that it is such a file, and ends with a whole line."""
    size = os.fstat(fd).st_size
    if not size:
        _append(fd, HEADING)
        return
    head = os.pread(fd, len(HEADING), 0)
    if head != HEADING.encode()[:size]:
        raise CliError(f"{path} is no file of secrets that an import has begun; give another name")
    if size < len(HEADING):
        _append(fd, HEADING[size:])
        return
    tail = os.pread(fd, 4096, max(0, size - 4096))
    torn = len(tail) - 1 - tail.rfind(b"\n")
    if torn:  # a power cut; what is torn is still pending
        os.ftruncate(fd, size - torn)


def _read_pending(fd: int) -> dict[str, str]:
    """Read what waits; a torn end was never sent."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    if data and not data.endswith(b"\n"):
        os.ftruncate(fd, data.rfind(b"\n") + 1)
    found: dict[str, str] = {}
    for line in data.splitlines():
        try:
            name, secret = json.loads(line)
        except ValueError:
            continue
        found[str(name)] = str(secret)
    return found


def _append(fd: int, text: str) -> None:
    """Write and sync. Raises OSError."""
    data = memoryview(text.encode())
    if not data:
        return
    while data:
        data = data[os.write(fd, data) :]
    os.fsync(fd)
