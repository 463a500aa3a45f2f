"""One process at a time on one directory of state: a lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from dfud.api import StoreError

NAME = "dfud.lock"
LOOK_S = 0.1


class DirectoryLock:
    """Holds `directory`/dfud.lock, which names the process, until release()."""

    def __init__(self, directory: Path) -> None:
        """Take the lock. Raises StoreError that names the holder, OSError if the file cannot be made."""
        path = directory / NAME
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            if not self._take():
                time.sleep(LOOK_S)  # held() may have had it for a moment
                if not self._take():
                    raise StoreError(in_use(directory))
        except BaseException:
            os.close(self._fd)
            raise
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _take(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        os.close(self._fd)


def in_use(directory: Path) -> str:
    return (
        f"the local store in {directory} is in use by {_holder(directory / NAME)}: stop that one first, "
        "or give this one another [store.local] path"
    )


def _holder(path: Path) -> str:
    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    return f"another dfud (process {text})" if text.isdigit() else "another dfud"


def held(directory: Path) -> bool:
    """Say whether somebody holds the lock now. Changes nothing."""
    try:
        fd = os.open(directory / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
