"""What `dfuctl board image` and `factory` refuse, each with what to do; and that nothing is written then."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import stat
import struct
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from bootloader.sim import images
from bootloader.sim.boot import Bootloader
from devicefw.sim.board import Board
from devicefw.sim.flash import FlashFile
from dfud.board import nvs
from dfud.board.flashmap import APP, DATA, LAYOUTS, Part
from dfud.cli.main import main
from tests.board.support import application, download, micropython
from tests.real_parts import require

STOCK = micropython("v1.24.1")
PUBLIC = base64.b64encode(images.public(images.key(1))).decode()
SERVER = ["--server", "http://192.168.1.2:8880"]


class Desk:
    """A folder with all that a board image needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = folder / "board.bin"
        application(folder / "app")
        (folder / "stock.bin").write_bytes(download(STOCK))
        (folder / "secret").write_text("abcdefghijklmnopqrstuv\n")
        (folder / "publisher.pub").write_text(PUBLIC + "\n")
        self.identity = ["--device", "lamp1", "--secret-file", str(folder / "secret")]

    def image(self, *options: str, server: list[str] = SERVER, code: int = 1, identity: list[str] | None = None) -> str:
        command = ["--app", "lamps", "board", "image", "--micropython", str(self.folder / "stock.bin")]
        command += ["--app", str(self.folder / "app"), *server, *(self.identity if identity is None else identity)]
        found = CliRunner().invoke(main, [*command, "-o", str(self.target), *options])
        assert found.exit_code == code, found.output
        assert self.target.exists() == (code == 0)
        return " ".join(found.output.split())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    require("riscv-gcc")
    return Desk(tmp_path)


def another_chip() -> bytes:
    return images.image("s3", segments=[(0x3FC96600, (0xABCD5432).to_bytes(4, "little") + bytes(252))], chip=9)


def older() -> bytes:
    described = struct.pack("<II8x32s32s", 0xABCD5432, 0, b"v1.23.0", b"micropython").ljust(256, b"\0")
    return images.image("older", segments=[(0x3FC96600, described), (images.ENTRY, bytes(64))])


OVERLAP = (Part(APP, 0, 0x10000, 0x1F0000, "factory"), Part(DATA, 0x81, 0x1F0000, 0x10000, "vfs"))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (download(another_chip()), "the image is for esp32s3, not for esp32c3"),
        (download(STOCK[:-1] + b"\0"), "the SHA-256 at offset"),
        (download(STOCK[:-40]), "the file ends at"),
        (download(images.application("large", 1_800_000)), "more than a slot holds: expected at most 1765376; take an older"),
        (download(STOCK, table=OVERLAP), "'vfs' at 0x1f0000: overlaps 'factory', which ends at 0x200000"),
        (download(older()), "MicroPython v1.23.0: the agent needs 1.24 or newer"),
        (b"\x7fELF" + bytes(100), "an ELF file"),
        (images.image("stage2"), "no application description"),
    ],
)
def test_a_download_that_would_not_run_is_refused(desk: Desk, data: bytes, told: str) -> None:
    (desk.folder / "stock.bin").write_bytes(data)
    assert told in desk.image()


def test_an_application_alone_is_taken_as_well(desk: Desk) -> None:
    (desk.folder / "stock.bin").write_bytes(STOCK)
    assert "MicroPython v1.24.1" in desk.image(code=0)


def test_a_server_and_an_identity_are_judged(desk: Desk) -> None:
    assert "expected http://host:port" in desk.image(server=["--server", "ftp://x"])
    assert "give --ca (of the CA) or --pin" in desk.image(server=["--server", "https://dfud.example:8880"])
    assert "who is the board?" in desk.image(identity=[])
    assert "give --device, too" in desk.image(identity=desk.identity[2:])
    assert "runs on no other chip" in desk.image("--hardware", "esp32s3")
    (desk.folder / "short").write_text("short\n")
    assert "5 bytes, expected 8 to 63" in desk.image("--wifi", "attic", "--wifi-password-file", str(desk.folder / "short"))
    assert "build it with `make bootloader`" in desk.image("--bootloader", str(desk.folder / "none"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "how does the board reach dfud?"),
        (["--serial", "4,5", "--server", "http://192.168.1.2:8880"], "how does the board reach dfud?"),
        (["--serial", "4,5", "--wifi", "attic"], "the board has no network"),
        (["--serial", "4"], "expected TX,RX or TX,RX,BAUD"),
        (["--serial", "4,9"], "GPIO9 is the boot strap"),
        (["--serial", "4,12"], "GPIO12 is the flash"),
        (["--serial", "30,4"], "GPIO30 is not there"),
        (["--serial", "4,4"], "expected two pins"),
        (["--serial", "4,5,50"], "a rate of 1200 to"),
    ],
)
def test_a_board_has_one_way_to_dfud(desk: Desk, options: list[str], told: str) -> None:
    assert told in desk.image(server=options)


def test_a_foreign_bootloader_is_refused(desk: Desk) -> None:
    (desk.folder / "boot.bin").write_bytes(images.image("stage2"))
    assert "bootloader: not dfud's" in desk.image("--bootloader", str(desk.folder / "boot.bin"))


def test_an_application_without_an_entry_is_refused(desk: Desk) -> None:
    main_file = desk.folder / "app" / "main.py"
    main_file.write_text("def main(:\n")
    assert "does not compile" in desk.image()
    main_file.write_text("print('on')\n")
    assert "no `async def main()`" in desk.image()
    main_file.unlink()
    assert "no main.py" in desk.image()


def test_an_application_that_confirms_nothing_is_warned_of(desk: Desk) -> None:
    (desk.folder / "app" / "main.py").write_text("async def main():\n    pass\n")
    assert "nothing in the application calls dfu.confirm()" in desk.image(code=0)


def test_a_board_that_joins_no_network_is_warned_of(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "warning: no --wifi: the board joins no network" in desk.image(code=0)
    desk.target.unlink()
    assert "--wifi" not in desk.image(server=["--serial", "4,5"], code=0)
    desk.target.unlink()
    monkeypatch.setenv("DFUCTL_WIFI_PASSWORD", "attic-secret")
    assert "--wifi" not in desk.image("--wifi", "attic", code=0)


def test_an_application_that_does_not_fit_has_room_on_a_larger_flash(desk: Desk) -> None:
    (desk.folder / "app" / "large.bin").write_bytes(os.urandom(200_000))
    assert "expected at most 94208 for a bank of 4MB (the largest: large.bin 200000" in desk.image()
    assert "do not fit into 172032" in desk.image("--no-banks")
    desk.image("--flash", "8MB", code=0)
    assert 0x400000 < desk.target.stat().st_size < 0x500000


def test_keys_need_a_manifest_that_they_signed(desk: Desk) -> None:
    key = ["--key", str(desk.folder / "publisher.pub")]
    assert "dfuctl sign FILE --app-at 0x10000 --app lamps --key publisher.pem --version v1.24.1" in desk.image(*key)
    manifest = desk.folder / "manifest"

    def signed(by: int, data: bytes = STOCK, **fields: str) -> list[str]:
        manifest.write_bytes(images.envelope(data, signer=images.key(by), **{"app": "lamps", **fields}))
        return [*key, "--manifest", str(manifest)]

    assert "not signed by a trusted key" in desk.image(*signed(2))
    assert "describes another image" in desk.image(*signed(1, STOCK + b"x"))
    assert "the manifest is for app 'pumps', expected 'lamps'" in desk.image(*signed(1, app="pumps"))
    assert "expected a file with, or itself, the base64 of 32 bytes" in desk.image("--key", "nonsense")
    told = desk.image(*signed(1), code=0)
    assert "no --key" not in told
    desk.target.write_bytes(desk.target.read_bytes().ljust(4 << 20, b"\xff"))
    found = Bootloader().boot(FlashFile(desk.target), reset_reason=1, store=[0] * 8)
    assert (found.slot, "warning" in found.console) == (0, False), found.console


def test_a_secret_is_in_the_file_alone(desk: Desk) -> None:
    told = desk.image("--wifi", "attic", "--wifi-password-file", str(desk.folder / "secret"), code=0)
    assert "abcdefghijklmnopqrstuv" not in told
    assert stat.S_IMODE(desk.target.stat().st_mode) == 0o600
    for output in ("text", "json"):
        found = CliRunner().invoke(main, ["-o", output, "board", "inspect", str(desk.target)])
        assert found.exit_code == 0 and "abcdefghijklmnopqrstuv" not in found.output
        assert "dfud/identity" in found.output


def test_a_factory_makes_one_identity_a_board(tmp_path: Path) -> None:
    (tmp_path / "claim").write_text("dfc_abcdefgh_0000000000000000\n")
    line = tmp_path / "line"
    command = ["board", "factory", "--count", "100", "--prefix", "lamp-", "--claim-file", str(tmp_path / "claim"), "-O", str(line)]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 0 and "dfc_" not in found.output, found.output
    rows = list(csv.DictReader(io.StringIO((line / "boards.csv").read_text())))
    assert len(rows) == 100 and rows[99] == {
        "name": "lamp-100",
        "file": "lamp-100.nvs.bin",
        "address": "0x9000",
        "chip": "esp32c3",
    }
    assert stat.S_IMODE(line.stat().st_mode) == 0o700
    for row in rows:
        path = line / row["file"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_size == 0x4000
        blob = nvs.decode_untrusted(path.read_bytes())["dfud"]["identity"]
        assert isinstance(blob, bytes)
        assert json.loads(blob) == {"device": row["name"], "claim": "dfc_abcdefgh_0000000000000000"}
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 1 and "is there already" in again.output


def test_a_factory_takes_the_secrets_of_an_import(tmp_path: Path) -> None:
    (tmp_path / "secrets.csv").write_text("lamp1,abc\nlamp2,def\n")
    command = ["board", "factory", "--secrets", str(tmp_path / "secrets.csv"), "-O", str(tmp_path / "line")]
    assert CliRunner().invoke(main, command).exit_code == 0
    blob = nvs.decode_untrusted((tmp_path / "line" / "lamp2.nvs.bin").read_bytes())["dfud"]["identity"]
    assert isinstance(blob, bytes) and json.loads(blob) == {"device": "lamp2", "secret": "def"}
    (tmp_path / "secrets.csv").write_text("lamp1,abc\nlamp1,def\n")
    assert "lamp1 is there twice" in CliRunner().invoke(main, [*command[:-1], str(tmp_path / "other")]).output
    assert "give one of --claim-file, --create and --secrets" in CliRunner().invoke(main, ["board", "factory", "-O", "x"]).output


async def test_what_happened_on_a_board_is_read_out_of_its_flash(desk: Desk) -> None:
    require("micropython")
    (desk.folder / "stock.bin").write_bytes(download(micropython("v1.26.0", "import network\ndel network.WLAN\n")))
    desk.image("--wifi", "attic", "--wifi-password-file", str(desk.folder / "secret"), code=0)
    lamp = Board(desk.folder / "lamp", flash=desk.target.read_bytes())
    for _ in range(2):
        assert await lamp.run_once()
    told = CliRunner().invoke(main, ["board", "inspect", str(lamp.flash.path)]).output
    assert "1: text in slot 0" in told and "AttributeError" in told
    assert "2: crash in slot 0, v1.26.0, crashes 1" in told
    assert "slot 0 confirmed, crashes 1" in told
    assert "ota_0 *  v1.26.0" in told
    rows = re.findall(r"^0x[0-9a-f]{7} \|(.{64})\|$", told, re.M)
    (legend,) = re.findall(r"^16384 bytes a character\. (.*)$", told, re.M)
    picture = "".join(rows)
    assert len(picture) == (4 << 20) // 16384, "a picture of the flash's map"
    for part in LAYOUTS["4MB"]:
        (letter,) = re.findall(rf"(\w) {part.label}(?:,|$)", legend)
        place = picture[part.offset // 16384 : -(-part.end // 16384)]
        assert letter in place or "." in place or part.size < 16384, part.label
    assert set(picture[0x1C0000 // 16384 : 0x370000 // 16384]) == {"."}, "nothing is in the other slot"


async def test_a_board_that_waits_for_recovery_is_asked(desk: Desk, nursery: trio.Nursery) -> None:
    require("micropython")
    (desk.folder / "stock.bin").write_bytes(download(micropython("v1.26.0", "import network\ndel network.WLAN\n")))
    desk.image("--wifi", "attic", "--wifi-password-file", str(desk.folder / "secret"), code=0)
    lamp = Board(desk.folder / "lamp", flash=desk.target.read_bytes())
    assert await lamp.run_once()
    lamp.strap = True
    nursery.start_soon(lamp.run)
    with trio.fail_after(60):
        while lamp.recovery_port is None:
            await trio.sleep(0.02)
    command = ["--config", str(desk.folder / "c.toml"), "board", "inspect", "--port", lamp.recovery_port]
    found = await trio.to_thread.run_sync(lambda: CliRunner().invoke(main, command))
    assert found.exit_code == 0, found.output
    assert "Waiting because: the recovery pin is held" in found.output
    assert "* slot 0: v1.26.0, sequence 0" in found.output and "AttributeError" in found.output
    nursery.cancel_scope.cancel()


def test_a_board_is_looked_at_in_one_way(desk: Desk) -> None:
    told = CliRunner().invoke(main, ["board", "inspect"]).output
    assert "give FILE, or --port" in told
    told = CliRunner().invoke(main, ["board", "inspect", "--port", str(desk.folder / "none")]).output
    assert "no such port" in told
