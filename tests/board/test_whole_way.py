"""From the download to a managed board, which is flashed with the file of `dfuctl board image` and nothing else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import trio
from click.testing import CliRunner

from devicefw.sim.board import Board
from devicefw.sim.cable import Cable
from dfud.cli.main import main
from tests.board.support import application, download, micropython
from tests.e2e.fleet import APP, Fleet, fleet
from tests.e2e.serialline import Bridge
from tests.real_parts import require

OLD = micropython("v1.24.1")
NEW = micropython("v1.25.0")
# A build without a module that the start-up needs.
BAD = micropython("v1.26.0", "import network\ndel network.WLAN\n")


async def made(tmp_path: Path, f: Fleet, *options: str, stock: bytes = OLD, serial: str = "") -> Path:
    """Run `dfuctl board image` with a claim code, as its help shows it."""
    code = str((await f.request("POST", f"/api/dfu/v1/apps/{APP}/claims", json={"uses": 5})).json()["code"])
    f.secrets.append(code)
    (tmp_path / "claim").write_text(code + "\n")
    (tmp_path / "wifi").write_text("correct horse\n")
    (tmp_path / "stock.bin").write_bytes(download(stock))
    target = tmp_path / "board.bin"
    command = ["board", "image", "--micropython", str(tmp_path / "stock.bin"), "--app", str(application(tmp_path / "app"))]
    command += ["--app-name", APP, "--claim-file", str(tmp_path / "claim"), "-o", str(target), *options]
    network = ["--server", f.daemon.urls["http"], "--wifi", "attic", "--wifi-password-file", str(tmp_path / "wifi")]
    command += ["--serial", serial] if serial else network
    found = await trio.to_thread.run_sync(lambda: CliRunner().invoke(main, command))
    assert found.exit_code == 0, found.output
    assert f"write-flash --erase-all --flash-mode keep --flash-size keep 0x0 {target}" in found.output
    assert code not in found.output and "correct horse" not in found.output
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o600
    return target


async def enrolled(f: Fleet, lamp: Board) -> str:
    """Wait until the board has made itself known, return the name that it got."""
    with trio.move_on_after(120):
        while True:
            found = (await f.request("GET", f"/api/registry/v1alpha1/apps/{APP}/devices")).json()
            if found and (await f.status(found[0]["metadata"]["name"])).get("current"):
                return str(found[0]["metadata"]["name"])
            await trio.sleep(0.1)
    raise AssertionError("not enrolled\n" + "\n".join(lamp.console))


async def test_a_board_enrols_is_updated_and_leaves_a_bad_update(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        lamp = Board(f.directory / "lamp", flash=(await made(tmp_path, f)).read_bytes())
        f.boards.append(lamp)
        for version, image in (("v1.24.1", OLD), ("v1.25.0", NEW), ("v1.26.0", BAD)):
            await f.publish(image, version)
        f.nursery.start_soon(lamp.run)
        name = await enrolled(f, lamp)
        assert (await f.status(name))["current"] == "v1.24.1", "the version is the image's own"
        await f.want(name, "v1.25.0")
        assert (await f.wait(name, "done"))["current"] == "v1.25.0"
        assert "wifi: joined attic" in lamp.console and "app: lamp is on" in lamp.console
        await f.want(name, "v1.26.0")
        status = await f.wait(name, "rolled-back")
        result = status["deployment"]["result"]
        assert (result["reason"], result["crashes"]) == ("crashed", 3), lamp.console
        assert "AttributeError" in result["text"]
        assert status["current"] == "v1.25.0"
        assert [boot.slot for boot in lamp.boots] == [0, 1, 0, 0, 0, 1]
        shown = CliRunner().invoke(main, ["board", "inspect", str(lamp.flash.path)]).output
        assert "ota_1 *  v1.25.0" in shown
        assert "left after crashes" in shown and "littlefs: " in shown


async def test_a_board_without_a_network_enrols_and_is_updated_over_its_serial_line(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        cable = Cable(tmp_path / "ttyUSB0")
        content = (await made(tmp_path, f, serial="4,5")).read_bytes()
        lamp = Board(f.directory / "lamp", flash=content, uart=cable.board)
        f.boards.append(lamp)
        for version, image in (("v1.24.1", OLD), ("v1.25.0", NEW)):
            await f.publish(image, version)
        bridge = Bridge(f.daemon.urls["http"], cable.port)
        f.nursery.start_soon(cable.run)
        await f.nursery.start(bridge.run)
        f.nursery.start_soon(lamp.run)
        name = await enrolled(f, lamp)
        await f.want(name, "v1.25.0")
        assert (await f.wait(name, "done"))["current"] == "v1.25.0"
        assert not any("wifi" in line for line in lamp.console)


async def test_a_board_of_a_batch_has_its_own_identity_and_more_flash(tmp_path: Path) -> None:
    """The one board.bin of the batch, 8 MB, and the NVS image of `dfuctl board factory` over it; a secret that dfud knows."""
    require("micropython")
    require("riscv-gcc")
    async with fleet(tmp_path) as f:
        secret = await f.add_device("lamp-007")
        content = bytearray((await made(tmp_path, f, "--flash", "8MB")).read_bytes())
        (tmp_path / "secrets.csv").write_text(f"lamp-007,{secret}\n")
        command = ["board", "factory", "--secrets", str(tmp_path / "secrets.csv"), "-O", str(tmp_path / "line")]
        found = CliRunner().invoke(main, command)
        assert found.exit_code == 0 and secret not in found.output, found.output
        identity = (tmp_path / "line" / "lamp-007.nvs.bin").read_bytes()
        content[0x9000 : 0x9000 + len(identity)] = identity
        lamp = Board(f.directory / "lamp", flash=bytes(content))
        assert lamp.flash.size == 8 << 20
        f.boards.append(lamp)
        await f.publish(OLD, "v1.24.1")
        await f.publish(NEW, "v1.25.0")
        await f.want("lamp-007", "v1.25.0")
        f.nursery.start_soon(lamp.run)
        assert (await f.wait("lamp-007", "done"))["current"] == "v1.25.0"
