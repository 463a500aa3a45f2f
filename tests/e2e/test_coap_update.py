"""Updates over CoAP: the real agent on real MicroPython, the real daemon, and a link that loses, repeats and reorders."""

from __future__ import annotations

import base64
import hashlib
import signal
import sys
from pathlib import Path

import pytest
import trio
from aiocoap import Message
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from devicefw.sim.board import Board
from devicefw.sim.flash import partition
from dfud.testing.link import FaultyUdpLink, UdpFaults
from tests.e2e.fleet import APP, Fleet, firmware, fleet
from tests.e2e.test_agent import signed, trailer, write_keys
from tests.package.test_build import code
from tests.real_parts import require

OLD = firmware("good", "1.0")
NEW = firmware("good", "1.1", code=code(60_000, 5))
SECURITY = ["oscore", "plain"]


async def prepared(f: Fleet, security: str, *, link: FaultyUdpLink | None = None, **config: object) -> Board:
    """A board that talks CoAP and does not run the newest firmware: through `link`, if there is one."""
    await f.publish(OLD, "1.0")
    await f.publish(NEW, "1.1")
    port = f.daemon.ports["coap"] if link is None else await f.nursery.start(link.run)
    board = await f.board("lamp1", OLD, **{"url": f"coap://127.0.0.1:{port}", "transport": "coap", "ack_timeout_ms": 500, **config})
    if security == "oscore":
        board.config["psk"] = await f.add_psk("lamp1")
        del board.config["secret"]
    return board


def holds(board: Board, slot: int, image: bytes) -> bool:
    offset, _ = partition(f"ota_{slot}")
    return hashlib.sha256(board.flash.read(offset, len(image))).digest() == hashlib.sha256(image).digest()


@pytest.mark.parametrize("security", SECURITY)
async def test_an_update_over_coap(tmp_path: Path, security: str) -> None:
    require("micropython")
    async with fleet(tmp_path, coap="plain = true" if security == "plain" else "") as f:
        board = await prepared(f, security)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        status = await f.wait("lamp1", "done", timeout_s=120)
        assert (status["current"], status["target"]) == ("1.1", "1.1")
        assert await f.history("lamp1") == ["pending", "notified", "fetching", "written", "trial", "done"]
        assert holds(board, 1, NEW)
        assert board.version_line() == "app: confirmed 1.1"
        assert not [line for line in board.console if line.startswith("dfu:")], "nothing had to be tried again"


@pytest.mark.parametrize(
    ("security", "loss"),
    [
        ("oscore", 0.2),
        ("plain", 0.2),
        *[pytest.param(s, loss, marks=pytest.mark.slow) for s in SECURITY for loss in (0.05, 0.1, 0.3)],
    ],
)
async def test_an_update_over_a_link_that_loses_repeats_and_reorders(
    tmp_path: Path, security: str, loss: float, capsys: pytest.CaptureFixture[str]
) -> None:
    require("micropython")
    async with fleet(tmp_path, coap="plain = true" if security == "plain" else "") as f:
        link = FaultyUdpLink(f.daemon.ports["coap"], UdpFaults(loss=loss, duplicate=0.05, reorder=0.05), seed=9)
        board = await prepared(f, security, link=link, ack_timeout_ms=150)
        await f.want("lamp1", "1.1")
        f.nursery.start_soon(board.run)
        status = await f.wait("lamp1", "done", timeout_s=200)
        assert status["current"] == "1.1"
        assert status["deployment"]["attempts"] == 0
        assert holds(board, 1, NEW)
        assert [b.slot for b in board.boots] == [0, 1]
        assert link.lost > 10 and link.duplicated > 0 and link.reordered > 0 and link.repeated > 10
        with capsys.disabled():
            told = f"{security}, {loss:.0%} loss each way: {link.passed} datagrams, {link.lost} lost, {link.duplicated} twice"
            print(f"\n{told}, {link.reordered} late; {link.repeated} retransmissions; byte-exact")


def chunk_of(data: bytes) -> int | None:
    """Return the number of the chunk that a datagram asks for, in plain CoAP."""
    if data[1] != 1:
        return None
    return int(Message.decode(data).opt.uri_path[3])


async def test_a_device_that_lost_power_goes_on_at_its_chunk(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path, coap="plain = true") as f:
        link = FaultyUdpLink(f.daemon.ports["coap"], UdpFaults())
        board = await prepared(f, "plain", link=link)
        await f.want("lamp1", "1.1")
        asked: list[int] = []
        link.on_datagram = lambda data: asked.extend(n for n in (chunk_of(data),) if n is not None)
        board.flash.cut_at, board.flash.cut_how = 45, "half"
        with trio.fail_after(120):
            while "-- power cut --" not in board.console:
                await board.run_once()
        before = list(asked)
        asked.clear()
        f.nursery.start_soon(board.run)
        assert (await f.wait("lamp1", "done", timeout_s=120))["current"] == "1.1"
        assert before[-1] > 0, "the cut came too early to show anything"
        assert asked[0] == before[-1], "it began again with the chunk that was cut"
        assert holds(board, 1, NEW)


@pytest.mark.parametrize("security", SECURITY)
async def test_a_waiting_device_is_woken(tmp_path: Path, security: str) -> None:
    require("micropython")
    async with fleet(tmp_path, coap="plain = true" if security == "plain" else "") as f:
        link = FaultyUdpLink(f.daemon.ports["coap"], UdpFaults())
        board = await prepared(f, security, link=link, wait_s=3600)
        f.nursery.start_soon(board.run)
        # With OSCORE the first one is asked for an Echo; then a POST and an observation, each answered.
        registered = 6 if security == "oscore" else 4
        with trio.fail_after(120):
            while link.passed < registered:
                await trio.sleep(0.05)
        await f.want("lamp1", "1.1")
        status = await f.wait("lamp1", "done", timeout_s=120)
        assert status["current"] == "1.1", "an hour has not passed: it was told"
        assert not [line for line in board.console if line.startswith("dfu:")]


async def test_a_signed_update_fits_into_the_heap(tmp_path: Path) -> None:
    """Client, OSCORE, decoder and Ed25519 at once: what takes the most RAM."""
    require("micropython")
    key = Ed25519PrivateKey.generate()
    async with fleet(tmp_path, coap="") as f:
        path = f"/api/registry/v1alpha1/apps/{APP}"
        app = (await f.request("GET", path)).json()
        app["spec"]["signing"] = {"mode": "optional", "keys": [base64.b64encode(key.public_key().public_bytes_raw()).decode()]}
        await f.request("PUT", path, json=app)
        board = await prepared(f, "oscore")
        write_keys(board, key.public_key().public_bytes_raw())
        trailer(board, signed(OLD, "1.0", 5, key))
        envelope = base64.b64encode(signed(NEW, "1.2", 6, key)).decode()
        parameters = {"version": "1.2", "hardware": "esp32c3"}
        path = f"/api/dfu/v1/apps/{APP}/firmware"
        await f.request("POST", path, params=parameters, content=NEW, headers={"dfud-manifest": envelope})
        await f.want("lamp1", "1.2")
        f.nursery.start_soon(board.run)
        # A heap that has just been in pieces fails the first attempt; the controller's second one comes after 30 s.
        status = await f.wait("lamp1", "done", timeout_s=150)
        assert status["current"] == "1.2"
        assert board.heap == "128K"


async def test_simulated_boards_speak_coap(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path, coap="") as f:
        await f.publish(OLD, "1.0")
        await f.publish(NEW, "1.1")
        await f.request("POST", f"/api/dfu/v1/apps/{APP}/update", json={"firmware": {"version": "1.1"}})
        command = [sys.executable, "-m", "dfud.daemon", "sim", "--transport", "coap", "--devices", "2"]
        command += ["--url", f.daemon.urls["coap"], "--registry", f.daemon.urls["registry"], "--token", f.daemon.token, "--app", APP]
        process = await trio.lowlevel.open_process(command, stdout=-3)
        try:
            for number in range(2):
                found = await f.wait(f"sim-{number}", "done", timeout_s=120)
                assert found["actual"]["transport"] == "coap"
        finally:
            process.send_signal(signal.SIGINT)  # Ctrl-C: the boards end, too
            await process.wait()
