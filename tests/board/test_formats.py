"""Flash map, partition table, NVS, file system and records, each against what it is made for."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootloader.sim import images
from dfud.board import filesystem, nvs
from dfud.board.flashmap import (
    APP,
    BOOTLOADERS_TABLE,
    DATA,
    LAYOUTS,
    SIZES,
    TABLE_END,
    WITHOUT_BANKS,
    Part,
    check,
    decode_table_untrusted,
    encode_table,
    find,
)
from dfud.board.image import Identity, build, envelope_of
from dfud.board.look import look_untrusted
from dfud.board.records import decode_trailer_untrusted, encode_keys, encode_trailer, keys_untrusted, states_untrusted
from dfud.board.software import pack
from dfud.board.stock import read_stock_untrusted
from dfud.errors import PeerError
from dfud.model.layout import SLOT_BYTES
from tests.board.support import download, micropython
from tests.real_parts import require

SLOT, NVS = Part(APP, 0x10, 0x10000, 0x1B0000, "ota_0"), Part(DATA, 2, 0x9000, 0x4000, "nvs")


@pytest.mark.parametrize("layouts", [LAYOUTS, WITHOUT_BANKS])
@pytest.mark.parametrize("flash", SIZES)
def test_each_layout_is_right_and_the_bootloaders_partitions_do_not_move(
    layouts: dict[str, tuple[Part, ...]], flash: str
) -> None:
    parts = layouts[flash]
    check(parts, SIZES[flash])
    for part in WITHOUT_BANKS["4MB"]:
        if part.label not in ("vfs", "dfu_stage"):
            assert find(parts, part.label) == part
    assert find(parts, "dfu_stage").offset == find(WITHOUT_BANKS["4MB"], "dfu_stage").offset
    first, end = BOOTLOADERS_TABLE
    for part in parts:
        assert part.label == "dfu_stage" or part.end <= first or part.offset >= end, "the bootloader writes there"
    assert all(part.size == SLOT_BYTES["esp32c3"] for part in parts if part.type == APP)
    assert decode_table_untrusted(encode_table(parts)) == parts


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ((SLOT, Part(APP, 0x11, 0x1B0000, 0x1B0000, "ota_1")), "'ota_1' at 0x1b0000: overlaps 'ota_0', which ends at 0x1c0000"),
        ((Part(DATA, 2, 0x8000, 0x4000, "nvs"),), f"overlaps bootloader and partition table, which end at {TABLE_END:#x}"),
        ((Part(APP, 0x10, 0x11000, 0x1B0000, "ota_0"),), "a multiple of 0x10000"),
        ((Part(DATA, 0x81, 0x3F0000, 0x20000, "vfs"),), "ends at 0x410000, the flash at 0x400000; take a larger --flash"),
        ((Part(DATA, 2, 0x9000, 0x123, "nvs"),), "whole sectors"),
    ],
)
def test_a_table_that_does_not_work_is_refused_by_name(parts: tuple[Part, ...], told: str) -> None:
    with pytest.raises(PeerError) as found:
        check(parts, 4 << 20)
    assert told in str(found.value)


def test_a_table_with_a_flipped_bit_is_refused() -> None:
    table = bytearray(encode_table(LAYOUTS["4MB"]))
    table[5] ^= 1
    with pytest.raises(PeerError, match="MD5"):
        decode_table_untrusted(bytes(table))


def test_nvs_is_what_espressifs_generator_makes(tmp_path: Path) -> None:
    blobs = {"identity": b'{"device":"lamp1","secret":"' + bytes(range(97, 119)) + b'"}', "starts": bytes(range(24))}
    lines = ["key,type,encoding,value", "dfud,namespace,,"]
    for key, blob in blobs.items():
        (tmp_path / key).write_bytes(blob)
        lines.append(f"{key},file,binary,{tmp_path / key}")
    (tmp_path / "nvs.csv").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "esp_idf_nvs_partition_gen", "generate", "nvs.csv", "nvs.bin", "0x4000"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    made = nvs.encode({"dfud": blobs}, 0x4000)
    assert made == (tmp_path / "nvs.bin").read_bytes()
    assert nvs.decode_untrusted(made) == {"dfud": blobs}


def test_the_integers_and_strings_of_an_application_are_read(tmp_path: Path) -> None:
    text = "key,type,encoding,value\nlamp,namespace,,\nlevel,data,i32,-7\nname,data,string,attic\nbig,data,u64,5000000000\n"
    (tmp_path / "nvs.csv").write_text(text)
    command = [sys.executable, "-m", "esp_idf_nvs_partition_gen", "generate", "nvs.csv", "nvs.bin", "0x4000"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    found = nvs.decode_untrusted((tmp_path / "nvs.bin").read_bytes())
    assert found == {"lamp": {"level": -7, "name": b"attic", "big": 5000000000}}


def test_nvs_that_does_not_fit_a_page_is_refused() -> None:
    with pytest.raises(PeerError, match="expected at most 126"):
        nvs.encode({"dfud": {"identity": bytes(4000)}}, 0x4000)


@given(st.binary(max_size=64), st.integers(0, 4095))
def test_no_bytes_of_nvs_break_the_reader(noise: bytes, at: int) -> None:
    page = bytearray(nvs.encode({"dfud": {"identity": b"x" * 100}}, 0x2000))
    page[at : at + len(noise)] = noise
    nvs.decode_untrusted(bytes(page))


def test_the_file_system_is_micropythons(tmp_path: Path) -> None:
    """Files around the size up to which one is kept inline, read by VfsLfs2 itself, which then writes to it."""
    micropython = require("micropython")
    files = {f"lib/f{size}": bytes(i * 7 % 251 for i in range(size)) for size in (0, 1, 127, 128, 129, 512, 4096, 9000)}
    data = filesystem.build(files, 0x2A000)
    assert data == filesystem.build(dict(reversed(list(files.items()))), 0x2A000), "the same files, the same bytes"
    (tmp_path / "fs").write_bytes(data)
    (tmp_path / "check.py").write_text(
        "import os, vfs\n"
        "class Flash:\n"
        "    def __init__(self): self.data = bytearray(open('fs', 'rb').read())\n"
        "    def readblocks(self, n, b, off=0): b[:] = self.data[n * 4096 + off : n * 4096 + off + len(b)]\n"
        "    def writeblocks(self, n, b, off=0): self.data[n * 4096 + off : n * 4096 + off + len(b)] = b\n"
        "    def ioctl(self, op, arg): return {4: len(self.data) // 4096, 5: 4096, 6: 0}.get(op)\n"
        "flash = Flash()\n"
        "vfs.mount(vfs.VfsLfs2(flash), '/f')\n"
        "for name in os.listdir('/f/lib'):\n"
        "    size = int(name[1:])\n"
        "    assert open('/f/lib/' + name, 'rb').read() == bytes(i * 7 % 251 for i in range(size)), name\n"
        "with open('/f/new', 'w') as file: file.write('kept')\n"
        "assert open('/f/new').read() == 'kept'\n"
        "print(len(os.listdir('/f/lib')))\n"
        "vfs.umount('/f')\n"
        "with open('written', 'wb') as file: file.write(flash.data)\n"
    )
    run = subprocess.run([micropython, "check.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == str(len(files)), run.stdout + run.stderr
    written, _ = filesystem.read_untrusted((tmp_path / "written").read_bytes())
    assert written.pop("/new") == 4, "MicroPython has made a newer file system of it, which is read, too"
    sizes, used = filesystem.read_untrusted(data)
    assert sizes == written == {f"/{path}": len(content) for path, content in files.items()}
    assert 4 < used < 42


def test_files_that_do_not_fit_are_refused_with_what_to_do() -> None:
    with pytest.raises(PeerError, match=r"200000 bytes do not fit into 172032 .*--flash 8MB"):
        filesystem.build({"large": bytes(200000)}, 0x2A000)


def test_a_pack_is_read_by_its_reader(tmp_path: Path) -> None:
    micropython = require("micropython")
    files = {"dfu/__init__.py": b"import dfu.one\nname = __name__\n", "dfu/one.py": b"x = 1\n" * 900}
    (tmp_path / "agent.pack").write_bytes(pack(files))
    reader = Path(__file__).parents[2] / "devicefw" / "board" / "pack.py"
    (tmp_path / "pack.py").write_bytes(reader.read_bytes())
    (tmp_path / "check.py").write_text(
        "import sys, vfs\nfrom pack import Pack\nvfs.mount(Pack('agent.pack'), '/agent', readonly=True)\n"
        "sys.path.insert(0, '/agent')\nimport dfu\nprint(dfu.name, dfu.one.x)\n"
        "for name in ('dfu/two.py', 'df', 'one.py'):\n"
        "    try:\n        open('/agent/' + name)\n        print('found', name)\n"
        "    except OSError as error:\n        print(error.errno)\n"
    )
    run = subprocess.run([micropython, "check.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.stdout.split() == ["dfu", "1", "2", "2", "2"], run.stdout + run.stderr


def test_records_are_the_bootloaders() -> None:
    envelope = images.envelope(images.application("one"))
    assert encode_trailer(envelope) == images.trailer(envelope)
    assert decode_trailer_untrusted(images.trailer(envelope).ljust(4096, b"\xff")) == envelope
    one, two = images.key(1), images.key(2)
    record = images.key_record(one, two, development=2)
    assert encode_keys([images.public(one), images.public(two)], {1}) == record
    found = keys_untrusted(record.ljust(8192, b"\xff"))
    assert found is not None and [(k.id, k.development) for k in found] == [
        (images.key_id(one).hex(), False),
        (images.key_id(two).hex(), True),
    ]
    assert keys_untrusted(b"\xff" * 8192) == [] and keys_untrusted(b"\0" * 8192) is None
    log = images.state(seq=1, slot=0) + images.state(seq=2, slot=1, phase=1, crashes=2, starts=16, outcome=1)
    last = states_untrusted(log.ljust(8192, b"\xff"))[-1]
    assert (last.number, last.slot, last.phase, last.crashes, last.starts) == (2, 1, "on trial", 2, 2)


@pytest.mark.parametrize("seed", range(3))
def test_no_damage_to_a_flash_breaks_the_reader(seed: int) -> None:
    """Table, NVS, image header, trailer and file system with wrong bytes: read as far as it goes, or refused in a sentence."""
    require("riscv-gcc")
    stock = read_stock_untrusted(download(micropython("v1.24.1")))
    content = build(
        flash="4MB",
        bootloader=(Path(__file__).parents[2] / "build" / "bootloader" / "bootloader.bin").read_bytes(),
        stock=stock,
        envelope=envelope_of(stock, "lamps", "esp32c3", b"", []),
        keys=[],
        development=set(),
        identity=Identity(device="lamp1", secret="abc"),
        files={f"lib/f{size}": bytes(size * 97) for size in range(20)},
    )
    assert look_untrusted(content).slots[0].version == "v1.24.1"
    noise = random.Random(seed)
    regions = [(0x8000, 0xC00), (0x9000, 0x400), (0x1BF000, 200), (0x370000, 0x8000), (0x10000, 0x80)]
    read = 0
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(noise.choice((1, 1, 3, 20))):
            at, size = noise.choice(regions)
            damaged[at + noise.randrange(size)] = noise.randrange(256)
        try:
            look_untrusted(bytes(damaged))
            read += 1
        except PeerError:
            continue
    assert 20 < read < 40, f"seed {seed}: the damage was none, or all of it was refused"


def test_a_flash_that_no_board_has_is_refused() -> None:
    with pytest.raises(PeerError, match="no partition table"):
        look_untrusted(b"\xff" * (4 << 20))
    with pytest.raises(PeerError, match="larger than the largest flash"):
        look_untrusted(bytes((16 << 20) + 1))
