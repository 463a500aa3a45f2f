"""`dfuctl board flash` against a chip in download mode on a pty: what is written, compared, asked and refused."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import serial
from click.testing import CliRunner

from dfud.board.flashmap import LAYOUTS, find
from dfud.board.image import Identity, identity_image
from dfud.cli.main import main
from tests.board.protocol_lines import RESET
from tests.board.romloader import CHANGE_BAUDRATE, ERASE_FLASH, READ_FLASH, S3, SPI_FLASH_MD5, Chip
from tests.board.support import application, download, micropython
from tests.real_parts import require

NVS = find(LAYOUTS["4MB"], "nvs")
LAMP2 = identity_image(Identity(device="lamp2", secret="vutsrqponmlkjihgfedcba"), "4MB")
# How long esptool waits for an answer: for chips that give none.
IMPATIENT = """[esptool]
timeout = 1
erase_region_timeout_per_mb = 1
erase_write_timeout_per_mb = 1
connect_attempts = 1
"""


def made(folder: Path, flash: str) -> Path:
    application(folder / "app")
    (folder / "stock.bin").write_bytes(download(micropython("v1.24.1")))
    (folder / "secret").write_text("abcdefghijklmnopqrstuv\n")
    command = ["--app", "lamps", "board", "image", "--micropython", str(folder / "stock.bin"), "--app", str(folder / "app")]
    command += ["--server", "http://192.168.1.2:8880", "--device", "lamp1", "--secret-file", str(folder / "secret")]
    found = CliRunner().invoke(main, [*command, "--flash", flash, "-o", str(folder / "board.bin")])
    assert found.exit_code == 0, found.output
    return folder / "board.bin"


@pytest.fixture(scope="module")
def board_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("riscv-gcc")
    require("esptool")
    return made(tmp_path_factory.mktemp("image"), "4MB")


def flash(port: str, file: Path, *options: str, code: int = 0, stderr: int = subprocess.PIPE) -> str:
    """Return what the command says on both streams, in one line."""
    settings = file.with_name("esptool.cfg")
    settings.write_text(IMPATIENT if code else "")
    command = [sys.executable, "-m", "dfud.cli", "board", "flash", "--port", port, str(file), *options]
    environment = {**os.environ, "ESPTOOL_CFGFILE": str(settings), "DFUCTL_CONFIG": str(file.with_name("config.toml"))}
    run = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False, timeout=300
    )
    told = " ".join((run.stdout + (run.stderr or "")).split())
    assert run.returncode == code, told
    assert "Traceback" not in told and "troubleshooting" not in told
    return told


def holds(chip: Chip, content: bytes) -> bool:
    return bytes(chip.flash) == content.ljust(len(chip.flash), b"\xff")


@pytest.mark.parametrize("options", [(), ("--no-stub",), ("--baud", "460800")])
def test_the_flash_is_the_file_and_blank_behind_it(board_bin: Path, options: tuple[str, ...]) -> None:
    chip = Chip()
    with chip.plugged_in() as port:
        told = flash(port, board_bin, *options)
    assert "flashed; press RESET, then it starts" in told, "a pty has no line that resets"
    assert holds(chip, board_bin.read_bytes())
    assert chip.counted[SPI_FLASH_MD5] >= 1, "it was compared"
    assert chip.stub == ("--no-stub" not in options)
    assert chip.counted[ERASE_FLASH] == (1 if chip.stub else 0)
    assert chip.counted[CHANGE_BAUDRATE] == ("--baud" in options)


def test_what_lies_behind_the_file_stays_without_erase_all(board_bin: Path) -> None:
    chip, content = Chip(), board_bin.read_bytes()
    before = bytes(chip.flash)
    with chip.plugged_in() as port:
        flash(port, board_bin, "--no-erase-all")
    assert bytes(chip.flash) == content + before[len(content) :] and len(content) < len(before)


def test_a_bar_shows_how_far_it_is(board_bin: Path) -> None:
    terminal, end = pty.openpty()
    shown = b""
    with Chip().plugged_in() as port:
        command = [sys.executable, "-m", "dfud.cli", "board", "flash", "--port", port, str(board_bin)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=end) as run:
            os.close(end)
            try:
                while more := os.read(terminal, 4096):
                    shown += more
            except OSError:  # EIO: the other end is closed
                pass
            assert run.wait() == 0
    os.close(terminal)
    assert b"Flash" in shown and "━".encode() in shown and b"B/s" in shown


def test_a_board_of_a_batch_gets_its_own_identity(board_bin: Path, tmp_path: Path) -> None:
    (tmp_path / "lamp2.nvs.bin").write_bytes(LAMP2)
    chip, content = Chip(), board_bin.read_bytes()
    with chip.plugged_in() as port:
        flash(port, board_bin, "--identity", str(tmp_path / "lamp2.nvs.bin"))
    assert holds(chip, content[: NVS.offset] + LAMP2 + content[NVS.end :])


@pytest.mark.parametrize(("options", "named"), [((), "device lamp2"), (("--no-stub",), "something that cannot be read")])
def test_a_board_with_an_identity_is_asked_about(board_bin: Path, options: tuple[str, ...], named: str) -> None:
    chip = Chip()
    chip.flash[NVS.offset : NVS.end] = LAMP2
    before = bytes(chip.flash)
    with chip.plugged_in() as port:
        told = flash(port, board_bin, *options, code=1)
        assert f"has an identity ({named}). Overwrite it? There is no terminal to ask at: give --yes" in told
        assert bytes(chip.flash) == before
    chip.stub = False  # power-on
    with chip.plugged_in() as port:
        flash(port, board_bin, *options, "--yes")
    assert holds(chip, board_bin.read_bytes())


def test_a_port_with_reset_lines_starts_the_board(board_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial, "protocol_handler_packages", ["tests.board"])
    command = ["board", "flash", str(board_bin), "--port"]
    chip = Chip()
    with chip.plugged_in() as port:
        found = CliRunner().invoke(main, [*command, f"lines://{port}"])
        assert found.exit_code == 0 and "flashed; reset, it starts" in found.output
    assert RESET[-2:] == [True, False], "RTS resets the chip, then lets it go"
    chip.stub = False
    RESET.clear()
    with chip.plugged_in() as port:
        found = CliRunner().invoke(main, [*command, f"lines://{port}"])
        assert found.exit_code == 1 and "(device lamp1)" in found.output
    assert RESET[-2:] == [True, False], "what was refused goes on as it was"
    assert holds(chip, board_bin.read_bytes())


def test_another_chip_is_refused_and_left_as_it_is(board_bin: Path) -> None:
    chip = Chip(chip=S3)
    before = bytes(chip.flash)
    with chip.plugged_in() as port:
        told = flash(port, board_bin, code=1)
    assert "the chip is esp32s3, expected esp32c3" in told
    assert bytes(chip.flash) == before


def test_a_flash_smaller_than_the_layout_is_refused(board_bin: Path, tmp_path: Path) -> None:
    small = Chip(flash_bytes=2 << 20)
    with small.plugged_in() as port:
        told = flash(port, board_bin, code=1)
    assert "the flash has 2097152 bytes" in told and "is laid out for 4194304" in told and "--flash" in told
    with Chip().plugged_in() as port:
        told = flash(port, made(tmp_path, "8MB"), code=1)
    assert "the flash has 4194304 bytes" in told and "is laid out for 8388608" in told


def test_a_flash_chip_that_does_not_answer_is_refused(board_bin: Path) -> None:
    with Chip(flash_identity=0xFFFFFF).plugged_in() as port:
        assert "the flash chip does not say its size: is it connected" in flash(port, board_bin, code=1)


def test_no_port_a_busy_one_and_one_that_is_none(board_bin: Path, tmp_path: Path) -> None:
    assert "no such port. Is the board plugged in?" in flash(str(tmp_path / "none"), board_bin, code=1)
    assert "not a serial port" in flash(str(board_bin), board_bin, code=1)
    with Chip().plugged_in() as port, serial.Serial(port) as terminal:
        fcntl.flock(terminal.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert "another program has the port. Close it" in flash(port, board_bin, code=1)


def test_nobody_answers(board_bin: Path) -> None:
    with Chip(mute=True).plugged_in() as port:
        told = flash(port, board_bin, code=1)
    assert "no ESP32-C3 answers" in told and "hold BOOT, press and release RESET" in told


@pytest.mark.parametrize("options", [(), ("--no-stub",)])
def test_a_chip_that_goes_silent_in_the_middle(board_bin: Path, options: tuple[str, ...]) -> None:
    with Chip(silent_at=3).plugged_in() as port:
        told = flash(port, board_bin, *options, code=1)
    assert "flashing failed" in told and "the board does not start until it is flashed anew" in told
    assert "flashing failed after " in told and "hold BOOT" in told


def test_a_cable_that_is_pulled_in_the_middle(board_bin: Path) -> None:
    with Chip(pulled_at=3).plugged_in() as port:
        told = flash(port, board_bin, code=1)
    assert "Check the cable, plug it in again, and run this again" in told and "flashing failed after " in told


@pytest.mark.parametrize("moment", ["in the middle", "before the first byte"])
def test_ctrl_c_says_in_which_state_the_board_is_and_what_to_do(board_bin: Path, moment: str) -> None:
    chip = Chip(stopped_at=3) if moment == "in the middle" else Chip(mute=True)
    before = bytes(chip.flash)
    with chip.plugged_in() as port:
        command = [sys.executable, "-m", "dfud.cli", "-o", "json", "board", "flash", "--port", port, str(board_bin)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            assert chip.reached.wait(60)
            run.send_signal(signal.SIGINT)
            chip.going.set()
            out, err = run.communicate(timeout=60)
    assert run.returncode == 130, out + err
    told = json.loads(out)["error"]
    assert "Traceback" not in err and told in err
    if moment == "in the middle":
        assert "the board does not start until it is flashed anew. Run this again" in told and "stopped after " in told
        assert bytes(chip.flash) != before
    else:
        assert "nothing was written, the flash is as it was" in told and bytes(chip.flash) == before


def test_a_byte_that_the_flash_did_not_keep_is_noticed(board_bin: Path) -> None:
    with Chip(flips=0x12345).plugged_in() as port:
        told = flash(port, board_bin, code=1)
    assert "MD5 of file does not match data in flash" in told


@pytest.mark.parametrize("options", [(), ("--baud", "460800")])
def test_a_board_at_a_port_is_looked_at_as_its_file_is(board_bin: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """What is shown was read from the flash: slots, state, keys, space and map, as of a file; and it is as it was behind it."""
    chip, content = Chip(), board_bin.read_bytes()
    chip.flash[:] = content.ljust(len(chip.flash), b"\xff")
    before = bytes(chip.flash)
    (tmp_path / "flash.bin").write_bytes(before)
    with chip.plugged_in() as port:
        command = [sys.executable, "-m", "dfud.cli", "board", "inspect", "--port", port, *options]
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "for which the board is reset" in run.stderr
    file = CliRunner().invoke(main, ["board", "inspect", str(tmp_path / "flash.bin")])
    assert file.exit_code == 0 and run.stdout == file.output
    assert "v1.24.1" in run.stdout and "abcdefghijklmnopqrstuv" not in run.stdout + run.stderr
    assert bytes(chip.flash) == before
    assert chip.counted[READ_FLASH] < len(before) // 0x10000, "blank pieces are not read"


def test_nobody_at_a_port_is_said(board_bin: Path) -> None:
    with Chip(mute=True).plugged_in() as port:
        settings = board_bin.with_name("esptool.cfg")
        settings.write_text(IMPATIENT)
        command = [sys.executable, "-m", "dfud.cli", "board", "inspect", "--port", port]
        environment = {**os.environ, "ESPTOOL_CFGFILE": str(settings)}
        run = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300
        )
    assert run.returncode == 1 and "no ESP32-C3 answers" in run.stderr and "hold BOOT" in run.stderr


def test_files_that_are_no_board_image(board_bin: Path, tmp_path: Path) -> None:
    (tmp_path / "stock.bin").write_bytes(download(micropython("v1.24.1")))
    (tmp_path / "lamp2.nvs.bin").write_bytes(LAMP2)
    (tmp_path / "text.bin").write_bytes(b"hello")
    port = str(tmp_path / "none")
    assert "no bootloader of dfud's, expected a file that `dfuctl board image` made" in flash(port, tmp_path / "stock.bin", code=1)
    assert "give the batch's board.bin, and this file with --identity" in flash(port, tmp_path / "lamp2.nvs.bin", code=1)
    assert "text.bin: " in flash(port, tmp_path / "text.bin", code=1)
    told = flash(port, board_bin, "--identity", str(tmp_path / "text.bin"), code=1)
    assert "--identity: 5 bytes without an identity, expected 16384" in told
