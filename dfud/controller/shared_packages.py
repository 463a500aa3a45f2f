"""Packages that one process has made, for all on one store: their bytes where its images are, and what they are called in documents.

What is here may be removed at any time: a package is made again by whoever is asked for it. Two documents name one package: by what
it was made of, and by its own name.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import trio

from dfud.api import BlobPlace, DeleteDocument, NotFoundError, PutDocument, Store, contained, read_record
from dfud.model.quickest import Candidate

COLLECTION = "packages"  # k/<key> and p/<package> -> Record
LEADS = 64  # so many packages are made at one time at most, by all processes
USED_S = 3600.0  # how exact "used last" is
TRIM_S = 600.0
PAGE = 1000


class Part(msgspec.Struct, frozen=True, rename="camel"):
    """One of the packages that were made of a key: its file, and what is chosen by."""

    candidate: Candidate
    sha256: str
    size_bytes: int


class Record(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """package: its name; sha256, size_bytes: of the file; used_s: when it was asked for last, roughly; key: what it was made of.

    made: under the key, all that was made of it, the smallest first, of which this is the record; empty: it is the only one.
    """

    package: str
    sha256: str
    size_bytes: int
    used_s: float
    key: str
    made: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.made or (Part(Candidate(self.package, 0, 0), self.sha256, self.size_bytes),)

    def of(self, package: str) -> Record:
        """Return the same for another one of what was made."""
        part = next(part for part in self.parts if part.candidate.package == package)
        return msgspec.structs.replace(self, package=package, sha256=part.sha256, size_bytes=part.size_bytes)


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

    async def publish(self, key: str, made: Sequence[Candidate], directory: Path) -> None:
        """Give what was made of a key, and is in a directory, to all. Raises StoreError."""

        def digest(path: Path) -> tuple[str, int]:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()

        parts = []
        for one in made:
            path = directory / f"{one.package}.dfup"
            sha256, size = await trio.to_thread.run_sync(digest, path)
            with path.open("rb") as file:
                await self._place.put(sha256, file, size)
            parts.append(Part(one, sha256, size))
        first = parts[0]
        await self._put(Record(first.candidate.package, first.sha256, first.size_bytes, self._now(), key, tuple(parts)))

    async def _put(self, record: Record) -> None:
        """Store the record of a key, and those of all that was made of it."""
        records = [record.of(part.candidate.package) for part in record.parts]
        changes = [PutDocument(COLLECTION, f"p/{one.package}", msgspec.json.encode(one)) for one in records]
        await self._store.commit([PutDocument(COLLECTION, f"k/{record.key}", msgspec.json.encode(record)), *changes])

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
            total += sum(part.size_bytes for part in record.parts)
            if total <= self._max_bytes or not number:
                continue
            removed += 1
            for at in (f"k/{record.key}", *(f"p/{part.candidate.package}" for part in record.parts)):
                with suppress(NotFoundError):
                    await self._store.commit([DeleteDocument(COLLECTION, at)])
            for part in record.parts:
                # Somebody may have published the same bytes as an image: then they are that's.
                async with self._store.blob(part.sha256) as path:
                    if path is None:
                        await self._place.remove(part.sha256)
        return removed

    async def _all(self) -> AsyncIterator[Record]:
        after = ""
        while page := await self._store.documents(COLLECTION, prefix="k/", after=after, limit=PAGE):
            after = page[-1][0]
            for at, raw in page:
                record = read_record("packages.shared", raw, Record, package=at)
                if record is not None:
                    yield record
