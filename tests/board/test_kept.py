"""Boards that keep their download's bootloader and table: what `dfuctl board image --keep-bootloader` makes, and nothing else."""

from __future__ import annotations

import re
import shlex
import stat
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from bootloader.sim.images import image
from devicefw.sim.board import Board
from devicefw.sim.espidf import EspIdf
from devicefw.sim.firmware import build
from devicefw.sim.stock import STOCK_TABLE
from dfud.board.flashmap import Part, encode_table
from dfud.cli.main import main
from tests.board.support import application
from tests.board.test_whole_way import enrolled
from tests.devicefw.otherboards import OTA_TABLE
from tests.e2e.fleet import APP, fleet
from tests.real_parts import require

BEGINS = {"esp32": 0x1000, "esp32s2": 0x1000}  # of a merged download, in flash


def micropython(version: str, chip: str, start: str = "") -> bytes:
    return build(start, version, chip=chip)


def download(chip: str, *, table: tuple[Part, ...] = OTA_TABLE, version: str = "v1.24.1") -> bytes:
    """Return the merged file as it is downloaded: from the place of the second stage on."""
    begins = BEGINS.get(chip, 0)
    flash = bytearray(b"\xff" * 0x10000) + micropython(version, chip)
    second_stage, rows = image("stage2"), encode_table(table)
    flash[begins : begins + len(second_stage)] = second_stage
    flash[0x8000 : 0x8000 + len(rows)] = rows
    return bytes(flash[begins:])


def made(tmp_path: Path, data: bytes, *options: str, code: int = 0) -> str:
    """Run the command for a board that enrols; return what it said. The file is tmp_path/board.bin."""
    (tmp_path / "stock.bin").write_bytes(data)
    if not (tmp_path / "app").exists():
        application(tmp_path / "app")
    command = ["board", "image", "--keep-bootloader", "--micropython", str(tmp_path / "stock.bin")]
    command += ["--app", str(tmp_path / "app"), "--app-name", APP, "--claim-file", str(tmp_path / "claim")]
    found = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "board.bin"), *options])
    assert found.exit_code == code, found.output
    return found.output


@pytest.mark.parametrize("chip", ["esp32", "esp32s3"])
async def test_a_stock_download_with_two_slots_becomes_a_board_that_is_updated_and_goes_back(tmp_path: Path, chip: str) -> None:
    require("micropython")
    async with fleet(tmp_path) as f:
        code = str((await f.request("POST", f"/api/dfu/v1/apps/{APP}/claims", json={"uses": 5})).json()["code"])
        f.secrets.append(code)
        (tmp_path / "claim").write_text(code + "\n")
        (tmp_path / "wifi").write_text("correct horse\n")
        wifi = ("--wifi", "attic", "--wifi-password-file", str(tmp_path / "wifi"))
        said = await trio.to_thread.run_sync(
            lambda: made(tmp_path, download(chip), "--server", f.daemon.urls["http"], *wifi)
        )
        target = tmp_path / "board.bin"
        assert f"esptool --chip {chip} " in said and f"0x0 {target}" in said and code not in said
        assert "warning: not dfud's bootloader: a new image has one trial" in said
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        content = target.read_bytes()
        begins = BEGINS.get(chip, 0)
        assert content[begins:0xD000][:0x100] == download(chip)[:0x100] and content[:begins] == b"\xff" * begins
        lamp = Board(f.directory / "lamp", flash=content, other=EspIdf(chip))
        f.boards.append(lamp)
        new, bad = micropython("v1.25.0", chip), micropython("v1.26.0", chip, "import network\ndel network.WLAN\n")
        for version, data in (("v1.24.1", micropython("v1.24.1", chip)), ("v1.25.0", new), ("v1.26.0", bad)):
            about = {"version": version, "hardware": chip}
            await f.request("POST", f"/api/dfu/v1/apps/{APP}/firmware", params=about, content=data)
        f.nursery.start_soon(lamp.run)
        name = await enrolled(f, lamp)
        await f.want(name, "v1.25.0")
        found = await f.wait(name, "done", timeout_s=60)
        assert (found["current"], found["actual"]["hardware"]) == ("v1.25.0", chip)
        assert "app: lamp is on" in lamp.console and "wifi: joined attic" in lamp.console
        await f.want(name, "v1.26.0")
        found = await f.wait(name, "rolled-back", timeout_s=60)
        assert "AttributeError" in found["deployment"]["result"]["text"] and found["current"] == "v1.25.0"
        assert [boot.slot for boot in lamp.boots] == [0, 1, 0, 1]
        shown = CliRunner().invoke(main, ["board", "inspect", str(lamp.flash.path)]).output
        assert "v1.25.0" in shown and "littlefs: " in shown, shown


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (lambda: download("esp32s3", table=STOCK_TABLE), [], "its partition table has no otadata, ota_0, ota_1, vfs"),
        (lambda: micropython("v1.24.1", "esp32s3"), [], "no partition table at 0x8000 of the flash: expected a merged download"),
        (lambda: download("esp32s3"), ["--hardware", "esp32c6"], "--hardware esp32c6: expected esp32s3 or esp32s3-<board>"),
        (lambda: download("esp32s3"), ["--bootloader", "boot.bin"], "leave --bootloader and --app-manifest out"),
        (lambda: download("esp32s3")[:-100], [], "ESP image: segment 1 at offset 320"),
        (lambda: b"\x7fELF" + bytes(100), [], "ELF"),
    ],
)
def test_each_refusal_says_what_was_expected(tmp_path: Path, data, options: list[str], said: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "claim").write_text("code\n")
    assert said in made(tmp_path, data(), "--server", "http://192.0.2.1:8880", *options, code=1)


def test_keys_come_into_nvs_and_need_a_signed_manifest(tmp_path: Path) -> None:
    (tmp_path / "claim").write_text("code\n")
    said = made(tmp_path, download("esp32s3"), "--server", "http://192.0.2.1:8880", "--key", "A" * 43 + "=", code=1)
    assert "a board with keys boots no image without a signed manifest" in said


def test_the_command_of_the_page_makes_a_board_that_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "other-boards.md").read_text()
    (shown,) = re.findall(r"^(dfuctl board image .*?)\n```", page, re.MULTILINE | re.DOTALL)
    words = shlex.split(shown.replace("\\\n", " "))
    (tmp_path / words[words.index("--micropython") + 1]).write_bytes(download("esp32"))
    (tmp_path / "claim").write_text("drc_1234567890abcdefghijklmnop\n")
    application(tmp_path / "app")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFUCTL_WIFI_PASSWORD", "correct horse")
    found = CliRunner().invoke(main, words[1:])
    assert found.exit_code == 0 and "esptool --chip esp32 " in found.output, found.output
    seen = CliRunner().invoke(main, ["board", "inspect", "board.bin"])
    assert seen.exit_code == 0 and "v1.24.1" in seen.output and "ota_1" in seen.output, seen.output
