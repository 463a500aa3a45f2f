"""What the agent promises an application: TLS that is checked, its hooks, signatures, many boards at once."""

from __future__ import annotations

import base64
import hashlib
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from devicefw.sim.board import Board
from devicefw.sim.firmware import build, program
from devicefw.sim.flash import partition
from dfud.wire.manifest import FLAG_DOWNGRADE, Manifest, sign
from dfud.wire.messages import Code
from tests.e2e.certificates import Authority
from tests.e2e.fleet import APP, Fleet, firmware, fleet
from tests.real_parts import require
from tests.security.hostile import HostileEndpoint, Offer, board_at, hostile_server

OLD, NEW = firmware("good", "1.0"), firmware("good", "1.1", code=bytes(range(256)) * 100)


def tls_section(directory: Path, authority: Authority, host: str = "localhost") -> str:
    certificate, key, _ = authority.server(directory, host)
    return f'certificate = "{certificate}"\nkey = "{key}"\n'


async def over_tls(f: Fleet, **trust: object) -> Board:
    await f.publish(OLD, "1.0")
    await f.publish(NEW, "1.1")
    url = f"https://localhost:{f.daemon.ports['http']}"
    board = await f.board("lamp1", OLD, **{"url": url, **trust})
    await f.want("lamp1", "1.1")
    f.nursery.start_soon(board.run)
    return board


async def test_an_update_over_tls_with_a_ca(tmp_path: Path) -> None:
    require("micropython")
    authority = Authority()
    async with fleet(tmp_path, extra=tls_section(tmp_path / "tls", authority)) as f:
        await over_tls(f, ca=authority.der)
        assert (await f.wait("lamp1", "done", timeout_s=120))["current"] == "1.1"


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_a_server_that_cannot_prove_itself_gets_nothing(tmp_path: Path, wrong: str) -> None:
    require("micropython")
    authority, stranger = Authority(), Authority()
    host = "elsewhere.example" if wrong == "name" else "localhost"
    async with fleet(tmp_path, extra=tls_section(tmp_path / "tls", authority, host)) as f:
        board = await over_tls(f, ca=(stranger if wrong == "authority" else authority).der)
        with trio.fail_after(120):
            while not any(line.startswith("dfu:") for line in board.console):
                await trio.sleep(0.05)
        assert "actual" not in await f.status("lamp1"), "not even a status was sent"
        assert not any("200" in line for line in board.console)


async def test_the_application_may_put_an_update_off_and_sees_its_progress(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        busy = firmware("busy", "1.0")
        await f.publish(busy, "1.0")
        await f.publish(firmware("busy", "1.1", code=bytes(range(256)) * 100), "1.1")
        board = await f.board("lamp1", busy, wait_s=1)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        with trio.fail_after(120):
            while "deferred" not in (status := await f.status("lamp1")).get("actual", {}):
                await trio.sleep(0.05)
        assert status["actual"]["deferred"]["reason"] == "being painted"
        assert status["deployment"]["state"] == "pending"
        await f.wait("lamp1", "done", timeout_s=120)
        assert any(line.startswith("app: progress ") for line in board.console)
        assert "app: self-test" in board.console


async def test_a_self_test_that_fails_is_a_failed_start(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        await f.publish(OLD, "1.0")
        await f.publish(firmware("selftest", "1.1"), "1.1")
        board = await f.board("lamp1", OLD)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        result = (await f.wait("lamp1", "rolled-back"))["deployment"]["result"]
        assert (result["reason"], result["crashes"]) == ("self-test", 3)
        assert "the lamp does not light" in result["text"]


@pytest.mark.parametrize(("kind", "reason", "text"), [("noimport", "crashed", "wifi_of_the_new_board"), ("nostart", "crashed", "")])
async def test_what_fails_before_the_agent_is_started_is_a_failed_start(tmp_path: Path, kind: str, reason: str, text: str) -> None:
    """An import, or set-up that hangs: without a guard the chip would stand at the REPL for ever, on trial."""
    require("micropython")
    async with fleet(tmp_path) as f:
        await f.publish(OLD, "1.0")
        await f.publish(firmware(kind, "1.1"), "1.1")
        board = await f.board("lamp1", OLD)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        result = (await f.wait("lamp1", "rolled-back", timeout_s=120))["deployment"]["result"]
        assert (result["reason"], result["crashes"]) == (reason, 3)
        assert text in result["text"]
        assert board.boots[-1].slot == 0


WORN = """
import esp32
_operate = esp32.Partition._operate
def worn(self, at, view, size):
    if {at} <= at < {at} + {size}:
        raise OSError(5)
    _operate(self, at, view, size)
esp32.Partition._operate = worn
"""


@pytest.mark.parametrize(("label", "skip", "chunks"), [("ota_1", 8192, 1), ("dfu_stage", 0, 0), ("dfu_state", 0, 1)])
async def test_flash_that_refuses_is_told_and_costs_the_update_only(tmp_path: Path, label: str, skip: int, chunks: int) -> None:
    """While it is written, while the transfer is noted, and when the slot is to be changed: never a crash of good firmware."""
    require("micropython")
    at, size = partition(label)
    running = build(WORN.format(at=at + skip, size=size - skip) + program("good", "1.0"), "1.0")
    offer = Offer("good", signed(NEW, "1.1", 6, Ed25519PrivateKey.generate()), NEW)
    endpoint = HostileEndpoint([offer, offer])
    async with hostile_server(endpoint) as url, trio.open_nursery() as nursery:
        board = board_at(tmp_path, url, running)
        nursery.start_soon(board.run)
        with trio.fail_after(120):
            while not endpoint.done():
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert endpoint.results["good"].code == Code.FLASH
    assert endpoint.fetched.get("good", 0) >= chunks
    assert [boot.slot for boot in board.boots] == [0], "good firmware goes on"


def write_keys(board: Board, *keys: bytes) -> None:
    """What the factory does: the first record of dfu_keys."""
    body = struct.pack("<II", 0x4B554644, 1) + bytes([len(keys), 0, 0]) + bytes(5) + b"".join(keys).ljust(128, b"\0")
    record = body.ljust(252, b"\0")
    board.flash.program(partition("dfu_keys")[0], record + struct.pack("<I", zlib.crc32(record)))


def trailer(board: Board, envelope: bytes) -> None:
    """An image flashed in the factory carries its manifest, too."""
    body = struct.pack("<II", 0x54554644, len(envelope)) + envelope
    body += b"\xff" * (-len(body) % 4)
    offset, size = partition("ota_0")
    board.flash.program(offset + size - 4096, body + struct.pack("<I", zlib.crc32(body)))


def signed(image: bytes, version: str, sequence: int, key: Ed25519PrivateKey, flags: int = 0, app: str = APP) -> bytes:
    return sign(
        Manifest(
            app=app,
            version=version,
            hardware="esp32c3",
            sequence=sequence,
            size=len(image),
            sha256=hashlib.sha256(image).digest(),
            flags=flags,
        ),
        key,
    )


async def test_a_device_with_keys_takes_what_they_signed_and_nothing_else(tmp_path: Path) -> None:
    """The server is the attacker here: it offers what it likes, and has no key."""
    require("micropython")
    key, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    async with fleet(tmp_path) as f:
        path = f"/api/registry/v1alpha1/apps/{APP}"
        app = (await f.request("GET", path)).json()
        both = [base64.b64encode(k.public_key().public_bytes_raw()).decode() for k in (key, stranger)]
        app["spec"]["signing"] = {"mode": "optional", "keys": both}
        await f.request("PUT", path, json=app)
        board = await f.board("lamp1", OLD)
        write_keys(board, key.public_key().public_bytes_raw())
        trailer(board, signed(OLD, "1.0", 5, key))
        accept = struct.pack("<II8BIII", 0x53554644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0)
        board.flash.program(partition("dfu_state")[0], accept + struct.pack("<I", zlib.crc32(accept)))
        await f.publish(OLD, "1.0")
        f.nursery.start_soon(board.run)
        offers = [
            ("unsigned", None, 9, 0, "failed", "signature"),
            ("by-a-stranger", stranger, 9, 0, "failed", "signature"),
            ("too-old", key, 4, 0, "failed", "downgrade"),
            ("allowed-downgrade", key, 4, FLAG_DOWNGRADE, "done", ""),
        ]
        for version, signer, sequence, flags, state, reason in offers:
            image = firmware("good", version)
            envelope = signed(image, version, sequence, signer, flags) if signer is not None else b""
            headers = {"dfud-manifest": base64.b64encode(envelope).decode()} if envelope else {}
            parameters = {"version": version, "hardware": "esp32c3"}
            path = f"/api/dfu/v1/apps/{APP}/firmware"
            await f.request("POST", path, params=parameters, content=image, headers=headers)
            await f.want("lamp1", version)
            found: dict[str, Any] = {}
            with trio.move_on_after(120):
                while (found.get("version"), found.get("state")) != (version, state):
                    await trio.sleep(0.1)
                    found = (await f.status("lamp1")).get("deployment", {})
            assert (found.get("version"), found.get("state")) == (version, state), f"{found} {f.consoles()}"
            if reason:
                assert found["result"]["reason"] == reason, version
                assert found["chunks"]["done"] == 0, "refused before the first byte"
        assert board.boots[-1].slot == 1


async def test_many_boards_run_against_one_dfud(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        await f.publish(OLD, "1.0")
        await f.publish(NEW, "1.1")
        await f.request("POST", f"/api/dfu/v1/apps/{APP}/update", json={"firmware": {"version": "1.1"}})
        urls = ["--registry", f.daemon.urls["registry"], "--url", f.daemon.urls["http"]]
        command = [sys.executable, "-m", "dfud.daemon", "sim", "--devices", "4", *urls, "--token", f.daemon.token, "--app", APP]
        process = await trio.lowlevel.open_process(command, stdout=-3)
        try:
            for number in range(4):
                await f.wait(f"sim-{number}", "done", timeout_s=120)
        finally:
            process.terminate()
            await process.wait()
