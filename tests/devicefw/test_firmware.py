"""Simulated firmware is what the chip, esptool and dfud take for an image."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from devicefw.sim.firmware import PROGRAMS, build, program, program_of
from dfud.model.espimage import check_esp_image_untrusted
from tests.real_parts import require

KINDS = sorted(p.stem for p in PROGRAMS.glob("*.py"))


@pytest.mark.parametrize("size", [0, 3, 70_000])
def test_esptool_accepts_the_image(tmp_path: Path, size: int) -> None:
    require("esptool")
    (tmp_path / "image.bin").write_bytes(build(program("good", "1.0"), "1.0", bytes(range(256))[: size % 256] * (size // 255 + 1)))
    command = [sys.executable, "-m", "esptool", "--chip", "esp32c3", "image-info", str(tmp_path / "image.bin")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Chip ID: 5 (ESP32-C3)" in run.stdout
    assert run.stdout.count("(valid)") == 2, "checksum and hash"
    assert "App version: 1.0" in run.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_carries_its_program(kind: str) -> None:
    image = build(program(kind, "2.0"), "2.0", bytes(1000))
    assert program_of(image) == program(kind, "2.0")
    found = check_esp_image_untrusted(io.BytesIO(image), len(image), "esp32c3")
    mapped = [s for s in found.segments if s.address >> 24 in (0x3C, 0x42)]
    assert all(s.address % 0x10000 == s.offset % 0x10000 for s in mapped), "the cache maps pages of 64 KB"
    pages = [{a >> 16 & 0x7F for a in (s.address, s.address + s.size - 1)} for s in mapped]
    assert not pages[0] & pages[1], "one table maps code and data"


def test_a_damaged_program_is_no_program() -> None:
    image = bytearray(build(program("good", "1.0"), "1.0"))
    image[image.find(b"dfudprog") + 20] ^= 1
    with pytest.raises(ValueError, match="damaged"):
        program_of(bytes(image))
    with pytest.raises(ValueError, match="carries no program"):
        program_of(bytes(5000))
