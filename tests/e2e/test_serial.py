"""Boards whose only link is a serial line: real agent on real MicroPython, `dfuctl bridge`, real dfud; and what befalls the line."""

from __future__ import annotations

import json
import random
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.e2e.certificates import Authority, self_signed
from tests.e2e.fleet import APP, Fleet, firmware, fleet
from tests.e2e.serialline import Bridge, wired
from tests.e2e.test_agent import tls_section
from tests.real_parts import require

OLD = firmware("good", "1.0")
NEW = firmware("good", "1.1", code=random.Random(1).randbytes(40_000))
BOOT_LOG = b"ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\nrst:0x3 (RTC_SW_SYS_RST),boot:0xd (SPI_FAST_FLASH_BOOT)\r\n"


async def published(f: Fleet) -> None:
    await f.publish(OLD, "1.0")
    await f.publish(NEW, "1.1")


def rough(seed: int, one_in: int) -> Callable[[bytes], bytes]:
    """Return what a bad line makes of bytes: some are lost, some changed, prints and noise come in between."""
    chance = random.Random(seed)

    def through(data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            dice = chance.randrange(one_in * 4)
            if dice == 0:
                continue
            if dice == 1:
                byte ^= 1 << chance.randrange(8)
            elif dice == 2:
                out += chance.choice([BOOT_LOG, b"lamp: on\r\n", b"\xc0", b"\xdb", chance.randbytes(20)])
            out.append(byte)
        return bytes(out)

    return through


@pytest.mark.parametrize("one_in", [0, 2000], ids=["good", "rough"])
async def test_a_board_on_a_serial_line_is_updated(tmp_path: Path, one_in: int) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        await published(f)
        board, cable = await wired(f, "lamp1", OLD)
        if one_in:
            cable.to_host, cable.to_board = rough(1, one_in), rough(2, one_in)
        bridge = Bridge(f.daemon.urls["http"], cable.port, options=("--console",))
        await f.nursery.start(bridge.run)
        f.nursery.start_soon(board.run)
        await f.want("lamp1", "1.1")
        found = await f.wait("lamp1", "done", timeout_s=240)
        assert found["current"] == "1.1"
        assert await bridge.says("lamp1@lamps: update to 1.1, ")
        assert await bridge.stop() == 0, "Ctrl-C ends it"
        told = "\n".join(bridge.lines)
        assert "Traceback" not in told
        for secret in f.secrets:
            assert secret not in told, "no secret is shown"


async def test_an_update_outlives_a_killed_bridge_a_pulled_cable_and_a_reset(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        await published(f)
        board, cable = await wired(f, "lamp1", OLD, payload=4112)
        bridge = Bridge(f.daemon.urls["http"], cable.port)
        await f.nursery.start(bridge.run)
        passed = 0

        def counted(data: bytes) -> bytes:
            nonlocal passed
            passed += len(data)
            return data

        cable.to_board = counted
        f.nursery.start_soon(board.run)
        await f.want("lamp1", "1.1")

        async def until(amount: int) -> None:
            with trio.fail_after(120):
                while passed < amount:
                    await trio.sleep(0.01)

        await until(6_000)
        await bridge.kill()
        bridge = Bridge(f.daemon.urls["http"], cable.port)
        await f.nursery.start(bridge.run)
        await until(14_000)
        cable.unplug()
        assert await bridge.says("gone; waiting for it")
        cable.plug()
        await until(22_000)
        board.reset()
        assert (await f.wait("lamp1", "done", timeout_s=240))["current"] == "1.1"
        assert passed < 3 * len(NEW), "it went on where it was"
        assert [boot.slot for boot in board.boots][-1] == 1
        assert await bridge.stop(signal.SIGTERM) == 0


async def test_several_boards_behind_one_gateway_over_tls(tmp_path: Path) -> None:
    require("micropython")
    authority = Authority()
    async with fleet(tmp_path, extra=tls_section(tmp_path / "tls", authority)) as f:
        await published(f)
        (tmp_path / "ca.cer").write_bytes(authority.der)
        wires = [await wired(f, f"lamp{n}", OLD) for n in range(3)]
        url = f"https://localhost:{f.daemon.ports['http']}"
        ports = [cable.port for _, cable in wires]
        bridge = Bridge(url, *ports, options=("--ca", str(tmp_path / "ca.cer")))
        await f.nursery.start(bridge.run)
        for n, (board, _) in enumerate(wires):
            f.nursery.start_soon(board.run)
            await f.want(f"lamp{n}", "1.1")
        for n in range(3):
            await f.wait(f"lamp{n}", "done", timeout_s=240)
            assert any(line.startswith(f"{ports[n]}: device lamp{n}@lamps") for line in bridge.lines)


@pytest.mark.parametrize("judge", ["--ca", "--pin", "name"])
async def test_a_server_that_cannot_prove_itself_gets_nothing_of_a_board(tmp_path: Path, judge: str) -> None:
    require("micropython")
    authority, stranger = Authority(), Authority()
    trusted = {"--ca": stranger.der, "--pin": self_signed(tmp_path / "other")[2], "name": authority.der}[judge]
    async with fleet(tmp_path, extra=tls_section(tmp_path / "tls", authority)) as f:
        (tmp_path / "trusted.cer").write_bytes(trusted)
        await published(f)
        board, cable = await wired(f, "lamp1", OLD)
        options = ["--ca" if judge == "name" else judge, str(tmp_path / "trusted.cer")]
        if judge == "name":
            options += ["--server-name", "elsewhere.example"]
        bridge = Bridge(f"https://localhost:{f.daemon.ports['http']}", cable.port, options=tuple(options))
        await f.nursery.start(bridge.run)
        f.nursery.start_soon(board.run)
        assert "certificate" in (await bridge.says("no answer of the server")).lower()
        assert "actual" not in await f.status("lamp1"), "not even a status was sent"


async def test_a_bridge_believes_the_pinned_server_under_the_name_in_its_certificate(tmp_path: Path) -> None:
    require("micropython")
    certificate, key, _ = self_signed(tmp_path / "tls", "dfud.example")
    async with fleet(tmp_path, extra=f'certificate = "{certificate}"\nkey = "{key}"\n') as f:
        await published(f)
        board, cable = await wired(f, "lamp1", OLD)
        options = ("--pin", str(certificate), "--server-name", "dfud.example")
        bridge = Bridge(f"https://127.0.0.1:{f.daemon.ports['http']}", cable.port, options=options)
        await f.nursery.start(bridge.run)
        f.nursery.start_soon(board.run)
        await bridge.says("lamp1@lamps: the server answers")


async def test_a_stolen_gateway_has_the_secrets_of_the_boards_behind_it(tmp_path: Path) -> None:
    """What docs/security.md says: who holds the gateway is those boards, until their secrets are revoked; and no other."""
    require("micropython")
    async with fleet(tmp_path) as f:
        await published(f)
        board, cable = await wired(f, "lamp1", OLD)
        secret, other = f.secrets[1], await f.add_device("lamp2")
        heard = bytearray()

        def listen(data: bytes) -> bytes:
            heard.extend(data)
            return data

        cable.to_host = listen
        bridge = Bridge(f.daemon.urls["http"], cable.port)
        await f.nursery.start(bridge.run)
        f.nursery.start_soon(board.run)
        await bridge.says("lamp1@lamps: the server answers")
        assert secret.encode() in heard and other.encode() not in heard


async def test_a_board_on_a_serial_line_enrols_with_a_claim_code(tmp_path: Path) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        await published(f)
        claim = (await f.request("POST", "/api/dfu/v1/apps/lamps/claims", json={"uses": 1})).json()["code"]
        f.secrets.append(claim)
        board, cable = await wired(f, "lamp1", OLD)
        del board.config["secret"]
        board.config |= {"claim": claim, "device": "lamp9"}
        bridge = Bridge(f.daemon.urls["http"], cable.port)
        bridge.command[3:3] = ["-o", "json"]
        await f.nursery.start(bridge.run)
        f.nursery.start_soon(board.run)
        await bridge.says("enrolled")
        await bridge.says("lamp9@lamps: the server answers")
        said = [json.loads(line) for line in bridge.lines]
        assert {one["port"] for one in said} == {str(cable.port)}
        assert claim not in "\n".join(bridge.lines)
        await f.want("lamp9", "1.1")
        await f.wait("lamp9", "done", timeout_s=240)


async def test_simulated_boards_without_a_network_are_bridged_as_the_simulator_says(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        command = [sys.executable, "-m", "dfud.daemon", "sim", "--transport", "serial", "--devices", "2", "--app", APP]
        command += ["--registry", f.daemon.urls["registry"], "--token", f.daemon.token, "--directory", str(tmp_path / "boards")]
        process = await trio.lowlevel.open_process(command, stdout=-1, stderr=-2)
        try:
            assert process.stdout is not None
            said = b""
            with trio.fail_after(120):
                while len(ports := re.findall(rb"serial line: dfuctl bridge --port (\S+) --server", said)) < 2:
                    said += await process.stdout.receive_some(65536)
            f.nursery.start_soon(drained, process.stdout)
            bridge = Bridge(f.daemon.urls["http"], *(Path(port.decode()) for port in ports))
            await f.nursery.start(bridge.run)
            await bridge.says("sim-0@lamps: the server answers")
            await bridge.says("sim-1@lamps: the server answers")
        finally:
            process.terminate()
            with trio.CancelScope(shield=True):
                await process.wait()


async def drained(stream: trio.abc.ReceiveStream) -> None:
    while await stream.receive_some(65536):
        pass
