"""Images in a real S3 service: brought, verified, kept for a while, removed; and a service that is away or lies."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import shutil
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from dfud_postgres.store import PostgresStore
from dfud_s3.config import S3Config
from dfud_s3.place import S3Place

from dfud.api import Bus, ConfigError, DeleteFirmware, PutApp, PutFirmware, Store, StoreError
from dfud.testing.store import a_blob, a_firmware, an_app, image_of
from dfud.testing.store_blobs import BlobConformance
from tests.plugins.postgres.server import Server, certificate, config_for
from tests.plugins.s3.gateway import KEY, SECRET, Gateway

LATEST_S = 120.0


def place_of(gateway: Gateway, directory: Path, **more: object) -> S3Place:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "secret").write_text(SECRET + "\n")
    given: dict[str, object] = {
        "endpoint": gateway.url,
        "bucket": "images",
        "access_key": KEY,
        "secret_file": str(directory / "secret"),
        "cache_path": str(directory / "cache"),
        "timeout_s": 60.0,
    }
    return S3Place(S3Config(**(given | more)))  # type: ignore[arg-type]


@asynccontextmanager
async def opened(place: S3Place) -> AsyncIterator[S3Place]:
    async with trio.open_nursery() as nursery:
        await nursery.start(place.run)
        yield place
        nursery.cancel_scope.cancel()


async def put(place: S3Place, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    await place.put(sha256, io.BytesIO(data), len(data))
    return sha256


async def read(place: S3Place, sha256: str) -> bytes | None:
    async with place.get(sha256) as path:
        return None if path is None else path.read_bytes()


async def test_what_is_put_is_read_by_another_and_removed(gateway: Gateway, tmp_path: Path) -> None:
    async with opened(place_of(gateway, tmp_path / "a")) as one, opened(place_of(gateway, tmp_path / "b")) as other:
        data = os.urandom(3_000_000)
        sha256 = await put(one, data)
        assert gateway.object(sha256).read_bytes() == data
        assert await read(other, sha256) == data
        await put(other, data)
        await one.remove(sha256)
        await one.remove(sha256)
        assert await read(one, sha256) is None
        assert not gateway.object(sha256).exists()


async def test_wrong_bytes_are_never_lent(gateway: Gateway, tmp_path: Path) -> None:
    async with opened(place_of(gateway, tmp_path / "a")) as place:
        sha256 = await put(place, b"the image")
        gateway.object(sha256).write_bytes(b"another!!")
        with pytest.raises(StoreError, match="other bytes than image") as refused:
            await read(place, sha256)
        assert refused.value.retryable and list((tmp_path / "a" / "cache").iterdir()) == []
        gateway.object(sha256).write_bytes(b"the image")
        assert await read(place, sha256) == b"the image"
        (tmp_path / "a" / "cache" / sha256).write_bytes(b"bit rot!!")
        assert await read(place, sha256) == b"the image", "a copy that is damaged is fetched anew"
        with pytest.raises(StoreError):
            await place.put("00" * 32, io.BytesIO(b"x"), 1)  # the service compares the digest


async def test_the_copies_stay_within_their_limit_but_for_those_in_use(gateway: Gateway, tmp_path: Path) -> None:
    async with opened(place_of(gateway, tmp_path / "a", cache_max_bytes=2500)) as place:
        digests = [await put(place, bytes([n]) * 1000) for n in range(5)]
        async with place.get(digests[0]) as held:
            assert held is not None
            for n, sha256 in enumerate(digests):
                assert await read(place, sha256) == bytes([n]) * 1000
            assert held.read_bytes() == bytes(1000)
        kept = {path.name for path in (tmp_path / "a" / "cache").iterdir()}
        assert len(kept) <= 2 and digests[4] in kept


async def test_a_service_that_is_away_is_told_of_and_comes_back(gateway: Gateway, tmp_path: Path) -> None:
    async with opened(place_of(gateway, tmp_path / "a")) as place:
        sha256 = await put(place, b"the image")
        gateway.stop()
        with trio.fail_after(LATEST_S):
            with pytest.raises(StoreError, match="S3 is away") as refused:
                await read(place, sha256)
            with pytest.raises(StoreError, match="S3 is away"):
                await put(place, b"another")
        assert refused.value.retryable
        gateway.start()
        assert await read(place, sha256) == b"the image"


async def test_check_says_what_is_wrong(gateway: Gateway, tmp_path: Path) -> None:
    await place_of(gateway, tmp_path / "a").check()
    with pytest.raises(StoreError, match="bucket nowhere is not there"):
        await place_of(gateway, tmp_path / "a", bucket="nowhere").check()
    wrong = place_of(gateway, tmp_path / "b")
    (tmp_path / "b" / "secret").write_text("guessed-words")
    with pytest.raises(StoreError) as refused:
        await wrong.check()
    assert "guessed" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"secret_file .*gone: No such file"):
        await place_of(gateway, tmp_path / "a", secret_file=str(tmp_path / "gone")).check()


class Nowhere(http.server.BaseHTTPRequestHandler):
    """Answers 404 to everything, as a proxy does in front of no service. body: of the answer."""

    body = b""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(404)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_PUT

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("body", [b"", b"<html>nothing here</html>"])
async def test_nothing_counts_as_stored_where_there_is_no_bucket(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(Nowhere, "body", body)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nowhere) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            async with opened(place_of(gateway, tmp_path / "a", endpoint=f"http://127.0.0.1:{server.server_port}")) as place:
                with pytest.raises(StoreError, match="bucket images.*: .+"):
                    await put(place, b"the image")
        finally:
            await trio.to_thread.run_sync(server.shutdown)
            serving.join()


async def test_a_bucket_that_was_deleted_is_named_and_what_is_cached_goes_on(gateway: Gateway, tmp_path: Path) -> None:
    async with opened(place_of(gateway, tmp_path / "a")) as place, opened(place_of(gateway, tmp_path / "b")) as other:
        sha256 = await put(place, b"the image")
        assert await read(place, sha256) == b"the image"
        shutil.rmtree(gateway.objects / "images")
        for refused in (put(place, b"another"), read(other, sha256)):
            with pytest.raises(StoreError, match="bucket images: NoSuchBucket"):
                await refused
        assert await read(place, sha256) == b"the image"
        (gateway.objects / "images").mkdir()
        assert await put(place, b"the image") == sha256
        assert await read(other, sha256) == b"the image"


@pytest.mark.parametrize("style", ["path", "virtual"])
async def test_it_speaks_tls_with_a_ca_of_its_own_in_either_style(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    certificate(tmp_path, "s3.example", "*.s3.example")
    certificate(tmp_path, "other.example")
    files = ("--cert", str(tmp_path / "s3.example.crt"), "--key", str(tmp_path / "s3.example.key"))
    domain = ("--virtual-domain", "s3.example") if style == "virtual" else ()
    gateway = Gateway(tmp_path / "gateway", *files, *domain)
    asked: set[str] = set()
    resolve = socket.getaddrinfo

    def resolved(host: Any, *given: Any, **more: Any) -> Any:
        if str(host).endswith("s3.example"):
            asked.add(host)
            host = "127.0.0.1"
        return resolve(host, *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    gateway.start()
    try:
        given = {"endpoint": f"https://s3.example:{gateway.port}", "style": style}
        async with opened(place_of(gateway, tmp_path / "a", ca_file=str(tmp_path / "s3.example.crt"), **given)) as place:
            await place.check()
            data = os.urandom(300_000)
            sha256 = await put(place, data)
            assert gateway.object(sha256).read_bytes() == data
            (tmp_path / "a" / "cache" / sha256).unlink(missing_ok=True)
            assert await read(place, sha256) == data
            await place.remove(sha256)
            assert not gateway.object(sha256).exists()
        assert asked == {"s3.example" if style == "path" else "images.s3.example"}
        for ca in (str(tmp_path / "other.example.crt"), ""):
            with pytest.raises(StoreError, match="(?i)certificate"):
                await place_of(gateway, tmp_path / "b", ca_file=ca, **given).check()
    finally:
        gateway.stop()


class TestPostgresOnS3(BlobConformance):
    """The store keeps the promise of every store about images, also where their bytes are in a bucket."""

    @pytest.fixture
    async def store(
        self, postgres: Server, gateway: Gateway, nursery: trio.Nursery, tmp_path: Path
    ) -> AsyncIterator[PostgresStore]:
        store = PostgresStore(config_for(tmp_path, blobs="s3"))
        store.keep_blobs_in(place_of(gateway, tmp_path / "place"))
        await nursery.start(store.run, Bus())
        yield store


async def test_an_image_of_one_process_is_read_by_another(postgres: Server, gateway: Gateway, tmp_path: Path) -> None:
    stores: list[Store] = []
    async with trio.open_nursery() as nursery:
        for name in ("one", "other"):
            store = PostgresStore(config_for(tmp_path, blobs="s3"))
            store.keep_blobs_in(place_of(gateway, tmp_path / name))
            await nursery.start(store.run, Bus())
            stores.append(store)
        one, other = stores
        await one.commit([PutApp(an_app())])
        async with a_blob(one, b"imag") as sha256:
            await one.commit([PutFirmware(a_firmware(sha256))])
        assert await image_of(other, sha256) == b"imag"
        await other.commit([DeleteFirmware("app1", "1.0")])
        assert await image_of(one, sha256) is None, "its own copy counts for nothing"
        assert not gateway.object(sha256).exists()
        nursery.cancel_scope.cancel()


