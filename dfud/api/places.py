"""Where the bytes of blobs are, for a store that keeps only their names. A plugin offers one (dfud_blob_places)."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import IO

import trio


class BlobPlace(abc.ABC):
    """Bytes by their SHA-256. It knows nothing of who needs them: the store does, and calls from several processes at once.

    Every method may raise StoreError (retryable: away, slow, full). Cancelling one leaves the bytes whole or not there.
    """

    name: str

    def counters(self) -> Mapping[str, float]:
        """Return what /metrics shows of this place."""
        return {}

    async def check(self) -> None:  # noqa: B027 - a place without anything to check is whole
        """Raise ConfigError or StoreError for what would keep run() from starting. Changes nothing."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the place, report started, serve until cancelled. May be called again on the same object."""
        task_status.started()
        await trio.sleep_forever()

    @abc.abstractmethod
    async def put(self, sha256: str, file: IO[bytes], size: int) -> None:
        """Keep the `size` bytes of `file`, from where it is now, durably. They may be there already, or come twice at once."""

    @abc.abstractmethod
    def get(self, sha256: str) -> AbstractAsyncContextManager[Path | None]:
        """Lend a local file with the bytes, or None where they are not there. What comes from elsewhere is verified first."""

    @abc.abstractmethod
    async def remove(self, sha256: str) -> None:
        """Remove the bytes, also where they are not there any more."""
