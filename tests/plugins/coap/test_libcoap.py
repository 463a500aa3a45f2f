"""libcoap's coap-client against the real listener: another implementation's idea of CoAP, blocks, observing and DTLS."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from dfud.api import Code, Reply
from tests.plugins.coap.world import CHUNK, LIMIT_S, PACKAGE, World, until
from tests.real_parts import require

BASIC = "Basic ZGV2MUBhcHAxOnNlY3JldA=="
AUTH = ("-O", f"4209,{BASIC}")


@pytest.fixture
async def world(nursery: trio.Nursery) -> AsyncIterator[World]:
    yield await World().start(nursery)
    nursery.cancel_scope.cancel()


async def client(*arguments: str, part: str = "coap-client") -> tuple[bytes, str]:
    """Run coap-client; return what it received and what it logged."""
    with trio.fail_after(LIMIT_S):
        run = await trio.run_process(
            [require(part), "-B", "20", *arguments], capture_stdout=True, capture_stderr=True, check=False
        )
    return run.stdout.removesuffix(b"\n"), run.stderr.decode("utf-8", "replace")


async def test_a_status_gets_its_command(world: World) -> None:
    out, log = await client("-v", "6", "-m", "post", "-e", "hello", *AUTH, f"{world.url}/v1/dfu")
    assert out.endswith(b"hello")
    assert "c:2.05" in out.decode() + log and "4210:\\x64\\x66\\x75" in out.decode() + log
    (got,) = world.endpoint.requests
    assert (got.channel, got.body, got.credentials.authorization) == ("dfu", b"hello", BASIC.encode())


async def test_drogues_own_sample_is_accepted(world: World) -> None:
    """The line of Drogue's documentation, and its one Uri-Query with several parameters."""
    query = "data_schema=urn%3Ax&as=dev%202&ct=0"
    await client("-m", "post", "-e", "21.5", *AUTH, "-O", f"15,{query}", "-U", f"{world.url}/v1/foo")
    (got,) = world.endpoint.requests
    assert (got.channel, got.data_schema, got.as_device) == ("foo", "urn:x", "dev 2")


@pytest.mark.parametrize("block", [16, 64, 512, 1024])
async def test_a_chunk_comes_in_blocks_of_the_size_that_was_asked_for(world: World, tmp_path: Path, block: int) -> None:
    target = tmp_path / "chunk"
    _, log = await client("-b", str(block), "-o", str(target), *AUTH, f"{world.url}/v1/dfu/{PACKAGE}/1")
    assert target.read_bytes() == CHUNK, log
    assert len(world.endpoint.fetches) == -(-len(CHUNK) // block)


@pytest.mark.parametrize("block", [32, 1024])
async def test_a_body_goes_up_in_blocks(world: World, tmp_path: Path, block: int) -> None:
    source = tmp_path / "body"
    source.write_bytes(CHUNK[:3000])
    await client("-b", str(block), "-m", "post", "-f", str(source), *AUTH, f"{world.url}/v1/telemetry")
    (got,) = world.endpoint.requests
    assert got.body == CHUNK[:3000]


async def test_a_large_command_comes_down_in_blocks(world: World, tmp_path: Path) -> None:
    world.endpoint.answers["dfu"] = Reply(Code.COMMAND, "dfu", CHUNK)
    target = tmp_path / "command"
    _, log = await client("-m", "post", "-e", "s", "-o", str(target), *AUTH, f"{world.url}/v1/dfu")
    assert target.read_bytes() == CHUNK, log
    assert len(world.endpoint.requests) == 1  # the other blocks are no new publishes


async def test_a_waiting_client_gets_a_separate_response(world: World) -> None:
    async def wake() -> None:
        await until(lambda: world.endpoint.parked)
        world.endpoint.wake(Reply(Code.COMMAND, "blink", b"now"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wake)
        out, _ = await client("-v", "6", "-m", "post", "-e", "x", *AUTH, f"{world.url}/v1/x?ct=50")
    assert out.endswith(b"now") and b"t:CON c:2.05" in out


async def test_an_observer_is_told_when_its_command_changes(world: World) -> None:
    async def change() -> None:
        await until(lambda: world.endpoint.parked)
        world.endpoint.wake(Reply(Code.COMMAND, "dfu", b"UPDATE"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        out, _ = await client("-w", "-m", "fetch", "-s", "3", "-e", "STATUS", *AUTH, f"{world.url}/v1/dfu")
    assert out.split()[:2] == [b"STATUS", b"UPDATE"]
    await until(lambda: not len(world.server.observers))  # Observe 1, or the reset of a client that has gone


async def test_wrong_credentials_and_wrong_paths_have_their_codes(world: World) -> None:
    _, log = await client("-m", "post", "-e", "x", "-O", "4209,Basic eDp5", f"{world.url}/v1/dfu")
    assert log.startswith("4.03")
    assert (await client("-m", "get", *AUTH, f"{world.url}/v1/dfu/{PACKAGE}/9"))[1].startswith("4.04")
    assert (await client("-m", "put", "-e", "x", *AUTH, f"{world.url}/v1/dfu"))[1].startswith("4.05")
    assert (await client("-m", "post", "-e", "x", "-O", "4211,x", *AUTH, f"{world.url}/v1/dfu"))[1].startswith("4.02")
    assert (await client("-m", "post", "-e", "x", "-A", "50", *AUTH, f"{world.url}/v1/dfu"))[1].startswith("4.06")


# DTLS


def _openssl(*arguments: str) -> None:
    subprocess.run([require("openssl"), *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server certificate, and a CA with a client certificate; libcoap wants key and certificate in one file."""
    directory = tmp_path_factory.mktemp("pki")
    for name in ("server", "ca"):
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
            *("-keyout", f"{directory}/{name}.key", "-out", f"{directory}/{name}.crt", "-subj", f"/CN={name}"),
        )
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", f"{directory}/client.key", "-out", f"{directory}/client.csr", "-subj", "/CN=dev1"),
    )
    _openssl(
        *(
            "x509",
            "-req",
            "-in",
            f"{directory}/client.csr",
            "-CA",
            f"{directory}/ca.crt",
            "-CAkey",
            f"{directory}/ca.key",
        ),
        *("-CAcreateserial", "-days", "2", "-out", f"{directory}/client.crt"),
    )
    for name in ("server", "client"):
        both = (directory / f"{name}.key").read_text() + (directory / f"{name}.crt").read_text()
        (directory / f"{name}.pem").write_text(both)
    return directory


async def test_dtls_carries_a_status_and_a_chunk(nursery: trio.Nursery, pki: Path, tmp_path: Path) -> None:
    world = await World(certificate=f"{pki}/server.crt", key=f"{pki}/server.key", plain=False).start(nursery)
    out, _ = await client(
        "-n", "-m", "post", "-e", "hello", *AUTH, f"{world.urls[1]}/v1/dfu", part="coap-client-openssl"
    )
    assert out == b"hello"
    target = tmp_path / "chunk"
    await client("-n", "-o", str(target), *AUTH, f"{world.urls[1]}/v1/dfu/{PACKAGE}/1", part="coap-client-openssl")
    assert target.read_bytes() == CHUNK
    (got,) = world.endpoint.requests
    assert got.encrypted and got.credentials.certificate == b""
    _, log = await client("-m", "post", "-e", "hello", *AUTH, f"{world.url}/v1/dfu")
    assert log.startswith("4.01")  # the plain port takes OSCORE only
    nursery.cancel_scope.cancel()


async def test_a_client_certificate_reaches_the_endpoint(nursery: trio.Nursery, pki: Path) -> None:
    world = await World(
        certificate=f"{pki}/server.crt", key=f"{pki}/server.key", client_ca=f"{pki}/ca.crt", client_required=True
    ).start(nursery)
    world.endpoint.authorization = None
    url = f"{world.urls[1]}/v1/dfu"
    out, _ = await client(
        *("-n", "-c", f"{pki}/client.pem", "-m", "post", "-e", "hello", url), part="coap-client-openssl"
    )
    assert out == b"hello"
    (got,) = world.endpoint.requests
    expected = x509.load_pem_x509_certificate((pki / "client.crt").read_bytes()).public_bytes(Encoding.DER)
    assert got.credentials.certificate == expected
    out, _ = await client("-n", "-B", "3", "-m", "post", "-e", "hello", url, part="coap-client-openssl")
    assert b"hello" not in out and len(world.endpoint.requests) == 1
    nursery.cancel_scope.cancel()


def test_the_header_of_these_tests_is_the_conformance_kits() -> None:
    assert base64.b64decode(BASIC.split()[1]) == b"dev1@app1:secret"
