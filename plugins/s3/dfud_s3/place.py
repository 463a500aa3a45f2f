"""Images as objects of a bucket, named by their SHA-256.

boto3 in threads, and no client of our own or one for asyncio: it is Amazon's own, signs (version 4), streams and retries as every
service was tried with, and an image is moved seldom (once for each process that packs it, never for a device), so what a thread costs
does not count. Bytes that come are verified before anybody gets them; bytes that go carry their digest, which the service compares.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import boto3
import trio
from boto3.exceptions import Boto3Error
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError

from dfud.api import BlobPlace, StoreError
from dfud_s3.cache import Copies
from dfud_s3.config import S3Config

T = TypeVar("T")
BLOCK_BYTES = 1 << 20
ATTEMPTS = 3
ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})


class S3Place(BlobPlace):
    name = "s3"

    def __init__(self, config: S3Config) -> None:
        self._config = config
        self._copies = Copies(Path(config.cache_path), config.cache_max_bytes)
        self._limit = trio.CapacityLimiter(config.connections)
        self._fetching: dict[str, trio.Lock] = {}
        self._made: Any = None
        self._counts = {"get": 0, "put": 0, "remove": 0, "failed": 0, "damaged": 0}

    def counters(self) -> Mapping[str, float]:
        return {f'dfud_s3_requests_total{{kind="{kind}"}}': float(n) for kind, n in self._counts.items()}

    @property
    def _client(self) -> Any:
        if self._made is None:
            config = self._config
            config.check()
            self._made = boto3.session.Session().client(
                "s3",
                endpoint_url=config.endpoint or None,
                region_name=config.region,
                aws_access_key_id=config.access_key,
                aws_secret_access_key=config.secret(),
                verify=config.ca_file or None,
                config=ClientConfig(
                    signature_version="s3v4",
                    s3={"addressing_style": config.style},
                    connect_timeout=config.timeout_s,
                    read_timeout=config.timeout_s,
                    max_pool_connections=config.connections,
                    retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                    # Services that are not Amazon's do not know checksums that are sent behind the body.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        return self._made

    def _key(self, sha256: str) -> str:
        return f"{self._config.prefix}{sha256[:2]}/{sha256}"

    async def _call(self, what: str, call: Callable[[], T]) -> T | None:
        """Return what a call returns, None where the object is not there. Raises StoreError."""
        self._counts[what] += 1
        try:
            return await trio.to_thread.run_sync(call, limiter=self._limit)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ABSENT:
                return None
            self._counts["failed"] += 1
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            message = f"S3 refused to {what} in bucket {self._config.bucket}: {code or f'HTTP status {status}'}"
            raise StoreError(message, retryable=status >= 500 or status == 429) from error
        except (BotoCoreError, Boto3Error) as error:
            self._counts["failed"] += 1
            raise StoreError(f"S3 is away ({what}): {error}", retryable=True) from error
        except OSError as error:
            raise StoreError(f"[blobs.s3] cache_path: {error}", retryable=True) from error

    async def check(self) -> None:
        self._config.check()
        bucket = self._config.bucket
        if await self._call("get", lambda: self._client.head_bucket(Bucket=bucket)) is None:
            raise StoreError(f"[blobs.s3] bucket {bucket} is not there: make it, or name another")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._config.check()
        self._copies.open()
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            made, self._made = self._made, None
            if made is not None:
                made.close()

    async def put(self, sha256: str, file: IO[bytes], size: int) -> None:
        digest = base64.b64encode(bytes.fromhex(sha256)).decode()
        start = file.tell()

        def put() -> bool:
            file.seek(start)
            self._client.put_object(
                Bucket=self._config.bucket, Key=self._key(sha256), Body=file, ContentLength=size, ChecksumSHA256=digest
            )
            return True

        if not await self._call("put", put):
            bucket = self._config.bucket
            raise StoreError(f"[blobs.s3] bucket {bucket} is not there: nothing was stored; make it, or name another")

    @asynccontextmanager
    async def get(self, sha256: str) -> AsyncIterator[Path | None]:
        path = self._copies.path(sha256)
        self._copies.lend(sha256)
        try:
            # One at a time fetches an image; the others find it.
            turn = self._fetching.setdefault(sha256, trio.Lock())
            async with turn:
                there = await trio.to_thread.run_sync(self._is_whole, path, sha256)
                there = there or await self._fetch(sha256, path)
            if not turn.statistics().tasks_waiting:
                self._fetching.pop(sha256, None)
            yield path if there else None
        finally:
            self._copies.give_back(sha256)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._copies.trim)

    def _is_whole(self, path: Path, sha256: str) -> bool:
        """A copy on this machine's disk is verified as well: it is read whole by whoever asks for it anyway."""
        try:
            with path.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError:
            return False
        if whole:
            self._copies.used(sha256)
        else:
            path.unlink(missing_ok=True)
        return whole

    async def _fetch(self, sha256: str, path: Path) -> bool:
        temporary = path.with_name(f".new-{secrets.token_hex(8)}")

        def fetch() -> str:
            digest = hashlib.sha256()
            try:
                answer = self._client.get_object(Bucket=self._config.bucket, Key=self._key(sha256))
                with temporary.open("xb") as out:
                    for block in answer["Body"].iter_chunks(BLOCK_BYTES):
                        digest.update(block)
                        out.write(block)
                if digest.hexdigest() == sha256:
                    temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
            return digest.hexdigest()

        found = await self._call("get", fetch)
        if found is not None and found != sha256:
            self._counts["damaged"] += 1
            raise StoreError(
                f"S3 returned other bytes than image {sha256}: they have SHA-256 {found}; publish the image again",
                retryable=True,
            )
        return found is not None

    async def remove(self, sha256: str) -> None:
        await self._call(
            "remove", lambda: self._client.delete_object(Bucket=self._config.bucket, Key=self._key(sha256))
        )
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: self._copies.path(sha256).unlink(missing_ok=True))
