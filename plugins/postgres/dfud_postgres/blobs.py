"""Images: the bytes in a place that all processes share, who needs them in the database.

A blob has a row from before its bytes are put to after they are removed. Whoever removes them holds that row's lock meanwhile, and
whoever brings them takes it before: so bytes are never removed under a writer, nor found missing by one who was told they are there.
A hold is a row, too; one of a process that was killed ends after HOLD_S.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

import trio

from dfud.api import BlobPlace, BlobWriter, StoreError
from dfud_postgres.connection import BEGIN, COMMIT, Connection
from dfud_postgres.errors import DatabaseError, Lost, told
from dfud_postgres.pool import Pool
from dfud_postgres.queries import STORED
from dfud_postgres.wire import Query

log = logging.getLogger("dfud.store")
DIGEST = re.compile(r"[0-9a-f]{64}")
HOLD_S = 3600
MEMORY_BYTES = 1 << 20  # of an upload, before it goes to a temporary file
COLLECTED_MAX = 1000

_ROW = Query(
    "INSERT INTO blob (sha256) VALUES ($1) ON CONFLICT (sha256) DO UPDATE SET stored=blob.stored RETURNING stored", "t"
)
_HOLD = Query("INSERT INTO blob_hold VALUES ($1,$2,$3, now() + $4::bigint * interval '1 second')", "ttti")
_KEPT = Query("UPDATE blob SET stored=true WHERE sha256=$1", "t")
_LET_GO = Query("DELETE FROM blob_hold WHERE id=$1", "t")
_LET_ALL_GO = Query("DELETE FROM blob_hold WHERE holder=$1 RETURNING sha256", "t")
_FREE = (
    "NOT EXISTS (SELECT 1 FROM firmware_image f WHERE f.sha256=b.sha256) "
    "AND NOT EXISTS (SELECT 1 FROM blob_hold h WHERE h.sha256=b.sha256 AND h.until>now())"
)
_DOUBT = Query(f"UPDATE blob b SET stored=false WHERE sha256=$1 AND {_FREE}", "t")  # noqa: S608 - constants
_LOCK = Query("SELECT 1 FROM blob WHERE sha256=$1 FOR UPDATE", "t")
_IS_FREE = Query(f"SELECT {_FREE} FROM blob b WHERE sha256=$1", "t")  # noqa: S608 - constants
_DELETE = Query("DELETE FROM blob WHERE sha256=$1", "t")
_STRAYS = Query(f"SELECT sha256 FROM blob b WHERE {_FREE} LIMIT {COLLECTED_MAX}")  # noqa: S608 - constants


class Blobs:
    """holder: this process, in what it holds."""

    def __init__(self, place: BlobPlace, pool: Pool, holder: str) -> None:
        self._place = place
        self._pool = pool
        self._holder = holder

    @asynccontextmanager
    async def lend(self, sha256: str) -> AsyncIterator[Path | None]:
        if not DIGEST.fullmatch(sha256) or not await self._pool.rows(STORED, sha256):
            yield None
            return
        async with self._place.get(sha256) as path:
            yield path

    async def new(self) -> BlobWriter:
        try:
            file = await trio.to_thread.run_sync(lambda: tempfile.SpooledTemporaryFile(MEMORY_BYTES))  # noqa: SIM115 - the writer closes it
        except OSError as error:
            raise _error(error) from error
        return _Writer(self, file)

    async def put(self, sha256: str, file: IO[bytes], size: int, hold: str) -> None:
        """Hold a blob under `hold`, and bring its bytes if they are not there."""
        try:
            async with self._pool.connection() as connection:
                _, row, *_ = await connection.run(
                    (BEGIN, ()), (_ROW, (sha256,)), (_HOLD, (hold, sha256, self._holder, HOLD_S)), (COMMIT, ())
                )
            if not row.rows[0][0]:
                await self._place.put(sha256, file, size)
                await self._pool.run(_KEPT, sha256)
        except (Lost, DatabaseError) as error:
            raise told("the image could not be stored", error) from error

    async def let_go(self, sha256: str, hold: str) -> None:
        await self._pool.run(_LET_GO, hold)
        await self.remove({sha256})

    async def remove(self, digests: set[str]) -> None:
        """Remove the images of `digests` that nobody needs. Raises StoreError; what is left then, collect() finds."""
        for sha256 in sorted(digests):
            try:
                async with self._pool.connection() as connection:
                    await self._remove(connection, sha256)
            except (Lost, DatabaseError) as error:
                raise told("an image was not removed", error) from error

    async def _remove(self, connection: Connection, sha256: str) -> None:
        whole = False
        try:
            # Whatever happens on the way, nobody who comes later takes the bytes to be there.
            await connection.run((BEGIN, ()), (_LOCK, (sha256,)), (_DOUBT, (sha256,)), (COMMIT, ()))
            # The second statement sees what was committed while the first waited for the lock.
            *_, free = await connection.run((BEGIN, ()), (_LOCK, (sha256,)), (_IS_FREE, (sha256,)))
            if free.row is not None and free.row[0]:
                # The bytes first: a row without bytes is found again and removed, bytes without a row never are.
                await self._place.remove(sha256)
                await connection.run((_DELETE, (sha256,)))
            await connection.run((COMMIT, ()))
            whole = True
        finally:
            if not whole:
                connection.close()

    async def collect(self) -> int:
        """Remove what nobody needs: of processes that were killed before they could. Return how many."""
        strays = {row[0] for row in await self._pool.rows(_STRAYS)}
        await self.remove(strays)
        if strays:
            log.info("images without a record were removed", extra={"images": len(strays)})
        return len(strays)

    async def close(self) -> None:
        """Let go of everything that this process holds."""
        with suppress(StoreError):
            found = await self._pool.run(_LET_ALL_GO, self._holder)
            await self.remove({row[0] for row in found.rows})


class _Writer(BlobWriter):
    def __init__(self, blobs: Blobs, file: IO[bytes]) -> None:
        self._blobs = blobs
        self._file: IO[bytes] | None = file
        self._digest = hashlib.sha256()
        self._size = 0
        self._held: tuple[str, str] | None = None

    async def write(self, data: bytes) -> None:
        file = self._open()
        try:
            await trio.to_thread.run_sync(file.write, data)
        except OSError as error:
            await self.aclose()
            raise _error(error) from error
        self._digest.update(data)
        self._size += len(data)

    def _open(self) -> IO[bytes]:
        if self._file is None:
            raise StoreError("the blob was given up or committed before")
        return self._file

    async def commit(self) -> str:
        file, sha256 = self._open(), self._digest.hexdigest()
        self._held = (sha256, secrets.token_hex(16))
        with trio.CancelScope(shield=True):
            try:
                file.seek(0)
                await self._blobs.put(sha256, file, self._size, self._held[1])
            except OSError as error:
                raise _error(error) from error
        file.close()
        self._file = None
        return sha256

    async def aclose(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        held, self._held = self._held, None
        if held is not None:
            with trio.CancelScope(shield=True):
                await self._blobs.let_go(*held)


def _error(error: OSError) -> StoreError:
    return StoreError(f"the image could not be stored: {error.strerror}", retryable=True)
