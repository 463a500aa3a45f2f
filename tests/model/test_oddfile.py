"""Files that are not one ESP image: each is named for what it is, with the command that helps; nothing else is named so."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootloader.provision import partition_table
from bootloader.sim.images import image
from devicefw.sim.firmware import build
from dfud.errors import PeerError
from dfud.model.espimage import merged_untrusted, parse_esp_image_untrusted, read_esp_image_untrusted

APP = build("print(1)\n", "1.0")
STAGE2 = image("stage2")


class Counted(io.BytesIO):
    """Counts the bytes that are read of it."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def merged(app: bytes = APP, *, stage2: bytes = STAGE2, table: bytes = partition_table(), start: int = 0) -> bytes:
    """Return what `esptool merge-bin` makes; start: where in flash the file begins."""
    flash = bytearray(b"\xff" * 0x10000) + app
    flash[start : start + len(stage2)] = stage2
    flash[0x8000 : 0x8000 + len(table)] = table
    return bytes(flash[start:])


def refusal(data: bytes) -> str:
    with pytest.raises(PeerError) as refused:
        parse_esp_image_untrusted(io.BytesIO(data), len(data))
    return str(refused.value)


@pytest.mark.parametrize("behind", [b"", b"\xff" * 0x20000, b"a file system"])
@pytest.mark.parametrize("start", [0, 0x1000, 0x2000])
def test_a_merged_file_is_told_to_be_cut_and_how(start: int, behind: bytes) -> None:
    data = merged(start=start) + behind
    told = refusal(data)
    found = re.search(r"dd if=FILE of=app.bin bs=(\d+) skip=(\d+) count=(\d+)`.*--app-at (0x[0-9a-f]+)$", told)
    assert found, told
    block, skip, count, at = int(found[1]), int(found[2]), int(found[3]), int(found[4], 16)
    assert "partition table at 0x8000" in told
    assert at == 0x10000 - start
    assert data[skip * block : (skip + count) * block] == APP
    cut = read_esp_image_untrusted(io.BytesIO(data), len(data), at)
    assert data[at : at + cut.size] == APP


def test_a_merged_file_whose_parts_are_damaged_is_still_a_merged_file() -> None:
    bad = bytearray(STAGE2)
    bad[40] ^= 1
    assert "--app-at 0x10000" in refusal(merged(stage2=bytes(bad)))
    assert "--app-at 0x10000" in refusal(merged(stage2=b""))
    assert re.search(r"application at 0x10000 is damaged: .*the file ends at", refusal(merged(APP[:-40])))
    assert re.search(r"application at 0x10000 is damaged: .*within its SHA-256", refusal(merged(APP[:-4])))
    told = refusal(merged(b""))
    assert "none of its application partitions (0x10000, 0x1c0000) holds an image" in told


def row(kind: int, offset: int, size: int = 0x10000) -> bytes:
    return struct.pack("<HBBII16sI", 0x50AA, kind, 0, offset, size, b"x", 0)


@pytest.mark.parametrize(
    "table", [b"", row(1, 0x9000), row(0, 0x10001), row(0, 0x10000, 0), row(0, 0x4000), row(0, 0xF0000000, 0x20000000)]
)
def test_what_is_no_partition_table_with_an_application_makes_no_merged_file(table: bytes) -> None:
    data = merged(table=table)
    assert merged_untrusted(io.BytesIO(data), len(data)) == ""
    assert "the file has" in refusal(data)


def test_an_image_that_holds_such_a_table_where_a_flash_does_is_an_image() -> None:
    table = row(0, 0x10000)
    data = bytearray(build("", "1.0", code=bytes(0x20000)))
    plain = parse_esp_image_untrusted(io.BytesIO(bytes(data)), len(data))
    data[0x8000 : 0x8020] = table
    data = bytearray(sealed(bytes(data), plain.size))
    assert parse_esp_image_untrusted(io.BytesIO(bytes(data)), len(data)).size == len(data)


def sealed(data: bytes, size: int) -> bytes:
    """Return an image with its checksum and SHA-256 made right again."""
    found, at = 0xEF, 24
    for _ in range(data[1]):
        (length,) = struct.unpack_from("<I", data, at + 4)
        for byte in data[at + 8 : at + 8 + length]:
            found ^= byte
        at += 8 + length
    body = data[: size - 33] + bytes([found])
    return body + hashlib.sha256(body).digest()


def block_v2(version: int = 2) -> bytes:
    body = (bytes([0xE7, version, 0, 0]) + bytes(range(256)) * 5)[:1196]
    return (body + struct.pack("<I", zlib.crc32(body)) + bytes(16)).ljust(4096, b"\xff")


def test_a_signature_of_secure_boot_is_named_with_its_version() -> None:
    padded = APP + b"\xff" * (-len(APP) % 4096)
    for version in (2, 3):  # RSA, ECDSA
        told = refusal(padded + block_v2(version))
        assert f"secure boot signature block (version 2) follows at offset {len(padded)}" in told
        assert f"head -c {len(APP)} FILE > app.bin" in told
    assert f"secure boot signature (version 1) follows at offset {len(APP)}" in refusal(APP + bytes(4) + b"\x35" * 64)
    damaged = bytearray(block_v2())
    damaged[9] ^= 1
    for other in (bytes(damaged), block_v2(4)):
        assert "no padding and no signature" in refusal(padded + other)


@pytest.mark.parametrize("value", [b"\xff", b"\0"])
@pytest.mark.parametrize("length", [1, 16, 68, 4096, 0x30001])
def test_padding_is_named_with_its_length_and_value(value: bytes, length: int) -> None:
    told = refusal(APP + value * length)
    assert f"ends at offset {len(APP)}; {length} bytes of padding ({value.hex()}) follow" in told
    assert f"head -c {len(APP)} FILE > app.bin" in told
    assert "no padding and no signature" in refusal(APP + value * length + b"x")


@pytest.mark.parametrize(
    ("data", "what", "tool"),
    [
        (b"\x7fELF\x01\x01\x01" + bytes(200), "an ELF file", "esptool --chip CHIP elf2image"),
        (b":020000040000FA\r\n:10000000E9030220", "an Intel HEX file", "objcopy -I ihex -O binary FILE app.bin"),
        (b"UF2\n" + struct.pack("<I", 0x9E5D5157) + bytes(504), "a UF2 file", "uf2conv.py --convert --output app.bin"),
    ],
)
def test_other_formats_are_named_with_the_tool_that_converts_them(data: bytes, what: str, tool: str) -> None:
    told = refusal(data)
    assert what in told and tool in told and "--raw" in told


@pytest.mark.parametrize("data", [b"", b":", b":not hex at all", b"UF2\n", b"\x7fEL", b"\xff" * 40000])
def test_what_is_of_no_known_format_is_named_for_none(data: bytes) -> None:
    assert refusal(data) == "not an ESP image: it does not start with e9 and a 24-byte header"


def test_a_judgement_reads_little_more_than_the_file_once() -> None:
    rows = b"".join(row(0, 0x10000 + 0x10000 * number) for number in range(90))
    for data in (
        APP + b"\xff" * 0x100000,
        APP + b"x" + b"\xff" * 0x100000,
        merged(APP * 20, table=rows),
        merged(table=rows) + b"\xff" * 0x100000,
    ):
        file = Counted(data)
        with pytest.raises(PeerError):
            parse_esp_image_untrusted(file, len(data))
        assert file.taken < len(data) + 0x20000, "more than the file, its start and its table once more"


@given(st.data())
def test_no_bytes_make_it_raise_anything_else(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from([merged(), merged(start=0x1000), APP + block_v2(), b"\x7fELF" + APP])))
    for _ in range(data.draw(st.integers(0, 6))):
        places = [*range(64), *range(0x7000, 0x7080), *range(0x8000, 0x8080), *range(0x10000, 0x10040), len(whole) - 5]
        whole[data.draw(st.sampled_from(places)) % len(whole)] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(0, len(whole))) :]
    try:
        parse_esp_image_untrusted(io.BytesIO(bytes(whole)), len(whole))
    except PeerError:
        pass
    merged_untrusted(io.BytesIO(bytes(whole)), len(whole))
