"""Reading ESP images: whole ones are accepted, everything else is refused with a reason."""

from __future__ import annotations

import hashlib
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfud.errors import PeerError
from dfud.model.espimage import (
    CHIP_IDS,
    Segment,
    check_application_untrusted,
    check_esp_image_untrusted,
    hardware_name,
    parse_esp_image_untrusted,
)


def esp_image(segments: list[tuple[int, bytes]], *, chip: int = 5, hashed: bool = True) -> bytes:
    header = bytearray(24)
    header[0], header[1], header[23] = 0xE9, len(segments), hashed
    header[4:8] = struct.pack("<I", 0x40380000)
    header[12:14] = struct.pack("<H", chip)
    image, checksum = bytes(header), 0xEF
    for address, data in segments:
        image += struct.pack("<II", address, len(data)) + data
        for byte in data:
            checksum ^= byte
    image += bytes(15 - len(image) % 16) + bytes([checksum])
    return image + (hashlib.sha256(image).digest() if hashed else b"")


GOOD = esp_image([(0x3C000020, b"rodata.." * 20), (0x40380000, bytes(range(256)) * 3), (0x42000020, b"")])


def parse(data: bytes) -> object:
    return parse_esp_image_untrusted(io.BytesIO(data), len(data))


def test_a_whole_image_is_read() -> None:
    image = parse_esp_image_untrusted(io.BytesIO(GOOD), len(GOOD))
    assert image.chip_id == 5
    assert image.entry == 0x40380000
    assert image.size == len(GOOD)
    assert image.segments[0] == Segment(0x3C000020, 32, 160)
    assert check_esp_image_untrusted(io.BytesIO(GOOD), len(GOOD), "esp32c3-board1") == image


def test_an_image_without_an_appended_hash_is_read_too() -> None:
    parse(esp_image([(0x40380000, b"\1\2\3\4")], hashed=False))


@pytest.mark.parametrize("at", range(0, len(GOOD), 7))
def test_a_changed_byte_is_noticed(at: int) -> None:
    bad = bytearray(GOOD)
    bad[at] ^= 0x40
    with pytest.raises(PeerError, match="ESP image"):
        parse(bytes(bad))


@pytest.mark.parametrize("length", [0, 1, 23, 24, 30, 100, len(GOOD) - 33, len(GOOD) - 1])
def test_a_cut_image_is_refused(length: int) -> None:
    with pytest.raises(PeerError, match="ESP image"):
        parse(GOOD[:length])


def test_bytes_behind_the_image_are_refused() -> None:
    with pytest.raises(PeerError, match=f"ends at offset {len(GOOD)}"):
        parse(GOOD + b"\xff" * 16)


def test_an_image_for_another_chip_is_refused_by_name() -> None:
    other = esp_image([(0x40380000, b"\1\2\3\4")], chip=9)
    with pytest.raises(PeerError, match="is for esp32s3, not for esp32c3"):
        check_esp_image_untrusted(io.BytesIO(other), len(other), "esp32c3")
    with pytest.raises(PeerError, match="hardware 'toaster'"):
        check_esp_image_untrusted(io.BytesIO(GOOD), len(GOOD), "toaster")


@pytest.mark.parametrize("there", [0, 1, 20, 31])
def test_an_image_that_ends_within_its_hash_is_told_so(there: int) -> None:
    end = len(GOOD) - 32
    with pytest.raises(PeerError, match=f"ends within its SHA-256 at offset {end}, of which {there} of 32 bytes are there"):
        parse(GOOD[: end + there])


def test_an_image_that_ends_before_its_checksum_is_told_so() -> None:
    end = len(GOOD) - 32
    with pytest.raises(PeerError, match=f"ends before its checksum byte at offset {end - 1}"):
        parse(GOOD[: end - 1])


def test_what_has_no_application_description_is_no_application() -> None:
    described = esp_image([(0x3C000020, struct.pack("<I", 0xABCD5432) + bytes(252)), (0x40380000, b"\1\2\3\4")])
    assert check_application_untrusted(io.BytesIO(described), len(described), "esp32c3").described
    # Behind the first four bytes, or at the start of another segment, it is data.
    later = esp_image([(0x40380000, b"\1\2\3\4"), (0x3C000020, struct.pack("<I", 0xABCD5432))])
    empty = esp_image([(0x40380000, b""), (0x3C000020, struct.pack("<I", 0xABCD5432))])
    for bootloader in (GOOD, later, empty, esp_image([(0x3FCD6000, b"\x50\0\0\0" * 20)])):
        assert check_esp_image_untrusted(io.BytesIO(bootloader), len(bootloader), "esp32c3")
        with pytest.raises(PeerError, match=r"no application description .* second-stage bootloader .* --raw"):
            check_application_untrusted(io.BytesIO(bootloader), len(bootloader), "esp32c3")


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("esp32c3", "esp32c3"),
        ("esp32-c3", "esp32c3"),
        ("ESP32C3", "esp32c3"),
        ("Esp32-C3-Board1", "esp32c3-Board1"),
        ("ESP32", "esp32"),
        ("ESP32-lamp", "esp32-lamp"),
        ("esp32-c3lamp", "esp32-c3lamp"),
        ("esp32c33", "esp32c33"),
        ("esp32-\u017f3", "esp32-\u017f3"),
        ("esp32-c3\n", "esp32-c3\n"),
        ("myesp32-c3", "myesp32-c3"),
        ("Toaster", "Toaster"),
        ("", ""),
    ],
)
def test_a_chip_is_understood_however_it_is_written(given: str, canonical: str) -> None:
    assert hardware_name(given) == canonical
    assert hardware_name(canonical) == canonical


def test_every_chip_is_understood_with_a_hyphen_and_in_capitals() -> None:
    for chip in CHIP_IDS:
        for spelled in (chip, chip.upper(), f"{chip[:5]}-{chip[5:]}".rstrip("-")):
            assert hardware_name(spelled) == chip
            assert hardware_name(f"{spelled}-x1") == f"{chip}-x1"
    assert check_esp_image_untrusted(io.BytesIO(GOOD), len(GOOD), "ESP32-C3").chip_id == 5


@given(st.binary(max_size=300))
def test_no_bytes_make_it_raise_anything_else(data: bytes) -> None:
    try:
        parse(b"\xe9" + data)
    except PeerError:
        return
