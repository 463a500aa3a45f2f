"""Packages that one process has made, for all on one store: their bytes where its images are, and what they are called in documents.

What is here may be removed at any time: a package is made again by whoever is asked for it. Two documents name one package: by what
it was made of, and by its own name.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import trio

from dfud.api import BlobPlace, DeleteDocument, NotFoundError, PutDocument, Store, contained, read_record

COLLECTION = "packages"  # k/<key> and p/<package> -> Record
LEADS = 64  # so many packages are made at one time at most, by all processes
USED_S = 3600.0  # how exact "used last" is
TRIM_S = 600.0
PAGE = 1000


class Record(msgspec.Struct, frozen=True, rename="camel"):
    """package: its name; sha256, size_bytes: of the file; used_s: when it was asked for last, roughly; key: what it was made of."""

    package: str
    sha256: str
    size_bytes: int
    used_s: float
    key: str


class SharedPackages:
    """place: where the store has the bytes of images; max_bytes: of all packages there. now: seconds since the epoch."""

    def __init__(self, store: Store, place: BlobPlace, max_bytes: int, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._place = place
        self._max_bytes = max_bytes
        self._now = now

    async def by_key(self, key: str) -> Record | None:
        """Return the package that was made of this, by whichever process. Raises StoreError."""
        return await self._record(f"k/{key}")

    async def by_name(self, package: str) -> Record | None:
        return await self._record(f"p/{package}")

    async def _record(self, at: str) -> Record | None:
        raw = await self._store.document(COLLECTION, at)
        found = read_record("packages.shared", raw, Record, package=at) if raw is not None else None
        if found is not None and self._now() - found.used_s > USED_S:
            with contained("packages.used"):
                await self._put(msgspec.structs.replace(found, used_s=self._now()))
        return found

    async def fetch(self, record: Record) -> bytes | None:
        """Return the file, None where it is gone or not what it should be. Raises StoreError."""
        async with self._place.get(record.sha256) as path:
            if path is None:
                return None
            data = await trio.to_thread.run_sync(path.read_bytes)
        return data if hashlib.sha256(data).hexdigest() == record.sha256 else None

    @asynccontextmanager
    async def making(self, key: str) -> AsyncIterator[None]:
        """Be the only process that makes this package until the block ends; it may be cancelled, and ends without an error then."""
        async with self._store.lead(f"packages.{int(key[:8], 16) % LEADS}"):
            yield

    async def publish(self, key: str, package: str, path: Path) -> None:
        """Give a package that is made to all. Raises StoreError."""

        def digest() -> tuple[str, int]:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()

        sha256, size = await trio.to_thread.run_sync(digest)
        with path.open("rb") as file:
            await self._place.put(sha256, file, size)
        await self._put(Record(package, sha256, size, self._now(), key))

    async def _put(self, record: Record) -> None:
        raw = msgspec.json.encode(record)
        await self._store.commit(
            [PutDocument(COLLECTION, at, raw) for at in (f"k/{record.key}", f"p/{record.package}")]
        )

    async def run(self) -> None:
        """Remove what was not used for longest, where this process leads that work, until cancelled."""
        while True:
            async with self._store.lead("packages"):
                while True:
                    with contained("packages.trim"):
                        await self.trim()
                    await trio.sleep(TRIM_S)

    async def trim(self) -> int:
        """Remove the packages that are too many, and return how many. The names go first: a name without bytes costs a look."""
        total, removed = 0, 0
        every = sorted([record async for record in self._all()], key=lambda record: -record.used_s)
        for number, record in enumerate(every):
            total += record.size_bytes
            if total <= self._max_bytes or not number:
                continue
            removed += 1
            for at in (f"k/{record.key}", f"p/{record.package}"):
                with suppress(NotFoundError):
                    await self._store.commit([DeleteDocument(COLLECTION, at)])
            # Somebody may have published the same bytes as an image: then they are that's.
            async with self._store.blob(record.sha256) as path:
                if path is None:
                    await self._place.remove(record.sha256)
        return removed

    async def _all(self) -> AsyncIterator[Record]:
        after = ""
        while page := await self._store.documents(COLLECTION, prefix="k/", after=after, limit=PAGE):
            after = page[-1][0]
            for at, raw in page:
                record = read_record("packages.shared", raw, Record, package=at)
                if record is not None:
                    yield record
