"""FORMAT.md and the headers say the same; the image fits, and the chip knows every instruction in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from bootloader.sim.boot import ELF
from bootloader.size import FREE_BYTES, LIMIT_BYTES, foreign_instructions, uses_of_gp
from devicefw.sim.flash import PARTITIONS
from dfud.board.flashmap import BOOTLOADERS_TABLE, LAYOUTS, find
from tests.bootloader.core import core
from tests.real_parts import require

ROOT = Path(__file__).parents[2]
FORMAT = (ROOT / "bootloader" / "FORMAT.md").read_text()
HEADER = (ROOT / "bootloader" / "core" / "dfu.h").read_text()
# In the order of host_sizes.
STATE = ["slot", "phase", "crashes", "max_crashes", "previous", "outcome", "reset", "writer", "floor", "accept", "tried", "crc"]
KEYS = ["count", "development", "revoked", "keys", "revoked_ids", "crc"]
DIAG = ["type", "slot", "crashes", "reset", "cause", "sequence", "version", "frame", "stack", "text", "crc"]


def section(name: str) -> str:
    return FORMAT.split(f"\n## {name}\n")[1].split("\n## ")[0]


def offsets(name: str) -> dict[str, int]:
    rows = re.findall(r"^\| (\d+) \| [^|]* \| (\w+) \|", section(name), re.MULTILINE)
    return {field: int(offset) for offset, field in rows}


def test_the_records_have_the_offsets_of_the_document() -> None:
    sizes = [core().host_sizes(i) for i in range(32)]
    for name, fields, at, size in (("State log", STATE, 0, 32), ("Keys", KEYS, 13, 256), ("Diagnostics", DIAG, 20, 512)):
        assert sizes[at] == size
        documented = offsets(name)
        assert {f: documented[f] for f in fields} == dict(zip(fields, sizes[at + 1 :], strict=False))


def test_the_map_is_the_documents() -> None:
    rows = re.findall(r"^\| (\w+) \| [^|]* \| 0x([0-9a-f]+) \| 0x([0-9a-f]+)", section("Map, 4 MB"), re.MULTILINE)
    documented = {name: (int(at, 16), int(size, 16)) for name, at, size in rows}
    defined = {k: int(v, 16) for k, v in re.findall(r"#define (DFU_\w+) (0x[0-9a-f]+)u", HEADER)}
    assert documented["dfu_state"][0] == defined["DFU_STATE_AT"]
    assert documented["dfu_keys"][0] == defined["DFU_KEYS_AT"]
    assert documented["dfu_diag"][0] == defined["DFU_DIAG_AT"]
    assert documented["dfu_stage"] == (defined["DFU_STAGE_AT"], defined["DFU_STAGE_SIZE"])
    slots = re.search(r"DFU_SLOT_AT\(slot\) \(\(slot\) \? (0x[0-9a-f]+)u : (0x[0-9a-f]+)u\)", HEADER)
    assert slots is not None
    assert documented["ota_1"] == (int(slots[1], 16), defined["DFU_SLOT_SIZE"])
    assert documented["ota_0"] == (int(slots[2], 16), defined["DFU_SLOT_SIZE"])
    assert {p[4]: (p[2], p[3]) for p in PARTITIONS} == {
        k: v for k, v in documented.items() if k not in ("bootloader", "partition")
    }


def test_the_maps_with_banks_are_the_documents() -> None:
    rows = re.findall(r"^\| (\w+) \| data, (0x\w+)((?: \| 0x[0-9a-f]+)+) \|$", section("Map with app banks"), re.MULTILINE)
    assert len(rows) == 5
    for name, subtype, numbers in rows:
        found = [int(n, 16) for n in re.findall(r"0x[0-9a-f]+", numbers)]
        for i, flash in enumerate(LAYOUTS):
            part = find(LAYOUTS[flash], name)
            assert (part.subtype, part.offset, part.size) == (int(subtype, 16), *found[2 * i : 2 * i + 2])
    defined = {k: int(v, 16) for k, v in re.findall(r"#define (DFU_\w+) (0x[0-9a-f]+)u", HEADER)}
    end = defined["DFU_STAGE_AT"] + defined["DFU_STAGE_SIZE"]
    assert (end - defined["DFU_TABLE_SIZE"], end) == BOOTLOADERS_TABLE


def test_magics_and_error_numbers_are_the_documents() -> None:
    for name, magic in re.findall(r"#define DFU_(\w+)_MAGIC (0x[0-9a-f]+)u", HEADER):
        assert magic in FORMAT, name
    numbers = {name: int(n) for name, n in re.findall(r"DFU_E_(\w+) = (\d+)", HEADER)}
    documented = re.findall(r"^\| (\d+) \| ([a-z-]+) \|", section("Error numbers"), re.MULTILINE)
    assert {name.replace("-", "_").upper(): int(n) for n, name in documented} == numbers


def test_the_bootloader_fits_and_holds_only_rv32imc() -> None:
    require("riscv-gcc")
    binary = ELF.with_name("bootloader.bin")
    assert binary.stat().st_size <= LIMIT_BYTES - FREE_BYTES
    assert foreign_instructions(ELF) == {}
    assert uses_of_gp(ELF) == 0


def test_a_foreign_instruction_would_be_found(tmp_path: Path) -> None:
    require("riscv-gcc")
    source, target = tmp_path / "x.c", tmp_path / "x.o"
    source.write_text("float f(float a, int *p) { return a * __atomic_fetch_add(p, 1, 0); }")
    command = ["riscv64-unknown-elf-gcc", "-march=rv32imafc", "-mabi=ilp32f", "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    assert {m.split(".")[0] for m in foreign_instructions(target)} >= {"amoadd", "fmul"}


def test_a_use_of_gp_would_be_found(tmp_path: Path) -> None:
    require("riscv-gcc")
    source, target = tmp_path / "x.S", tmp_path / "x.o"
    source.write_text("lw a0, 4(gp)\naddi sp, sp, -16\n")
    command = ["riscv64-unknown-elf-gcc", "-march=rv32imc", "-mabi=ilp32", "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    assert uses_of_gp(target) == 1


def test_esptool_takes_it_for_a_bootloader_of_the_chip() -> None:
    require("esptool")
    require("riscv-gcc")
    command = [sys.executable, "-m", "esptool", "--chip", "esp32c3", "image-info", str(ELF.with_name("bootloader.bin"))]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "ESP32-C3" in text
    assert len(re.findall(r"\(valid\)", text)) == 2
    assert re.search(r"Flash size: 4MB", text)
    assert re.search(r"Flash mode: DIO", text)
