"""The core's decoders against other implementations of the same formats, and against noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bootloader.sim.images import envelope as make_envelope
from bootloader.sim.images import image, key, key_id, public
from dfud.errors import PeerError
from dfud.package.apply import decode_frame_untrusted
from dfud.package.build import build_full, parameters
from dfud.wire.chunk import Chunk, decode_chunk_untrusted, encode_chunk
from dfud.wire.manifest import Manifest, decode_envelope_untrusted, unsigned
from tests.bootloader import core

words = st.lists(st.sampled_from([b"valve ", b"pump ", b"\0\0\0", b"open", b"\x13\x05", b"!"]), max_size=4000).map(b"".join)
noise = st.binary(max_size=9000)


def compress(data: bytes, prefix: bytes, level: int) -> bytes:
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters(level)).compress(data)


@settings(deadline=None, max_examples=150)
@given(words | noise, words | st.just(b""), st.sampled_from([1, 3, 7, 12, 19, 22]))
def test_what_libzstd_makes_is_decoded(data: bytes, prefix: bytes, level: int) -> None:
    assert core.zstd(compress(data, prefix, level), len(data), prefix) == (0, data)


def test_large_frames_with_every_kind_of_table_are_decoded() -> None:
    text = image("a", 60000) + b"".join(b"%d," % (i * i) for i in range(14000))
    for level in (1, 5, 19):
        for size in (1, 4095, 4096, 4097, 70000, len(text)):
            assert core.zstd(compress(text[:size], b"", level), size) == (0, text[:size])


@settings(deadline=None, max_examples=300)
@given(words, st.integers(0, 10**6), st.integers(1, 255), st.sampled_from([1, 19]))
def test_an_altered_frame_is_refused_or_decodes_as_libzstd_says(data: bytes, at: int, mask: int, level: int) -> None:
    frame = bytearray(compress(data, b"", level))
    frame[at % len(frame)] ^= mask
    error, out = core.zstd(bytes(frame), len(data))
    assert error in (0, 12)
    if error == 0:
        try:
            theirs = decode_frame_untrusted(bytes(frame), b"", len(data))
        except PeerError:
            return  # libzstd also checks what is not needed here: window, unused bits
        assert out == theirs


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.integers(0, 5000))
def test_noise_is_never_decoded_beyond_its_buffer(data: bytes, size: int) -> None:
    assert core.zstd(data, size)[0] in (0, 12)


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=1200), st.integers(0, 511))
@example(bytes(32), b"", 0)
def test_signatures_are_judged_as_by_openssl(seed: bytes, message: bytes, bit: int) -> None:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    signature = private.sign(message)
    known = private.public_key().public_bytes_raw()
    assert core.verify(known, signature, message)
    altered = bytearray(signature)
    altered[bit // 8] ^= 1 << bit % 8
    assert not core.verify(known, bytes(altered), message)
    assert not core.verify(known, signature, message + b"\0")
    other = bytearray(known)
    other[bit // 16] ^= 1 << bit % 8
    assert not core.verify(bytes(other), signature, message)


def test_the_vectors_of_rfc_8032_verify() -> None:
    vectors = [
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
            "",
        ),
        (
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
            "72",
        ),
        (
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
            "af82",
        ),
    ]
    for known, signature, message in vectors:
        assert core.verify(bytes.fromhex(known), bytes.fromhex(signature), bytes.fromhex(message))


def test_a_signature_with_a_scalar_beyond_the_order_is_refused() -> None:
    private = key(5)
    signature = private.sign(b"x")
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(signature[32:], "little") + order
    assert not core.verify(public(private), signature[:32] + scalar.to_bytes(32, "little"), b"x")


ENVELOPE = make_envelope(image("e", 500), signer=key(1), floor=2, sequence=70000, add=(public(key(2)),), revoke=(key_id(key(3)),))
BESIDE = unsigned(Manifest("lamp", "3.2", "esp32c3", 9, 8192, bytes(32), beside=(1, 70000)))


VECTORS = json.loads(Path(__file__).parents[1].joinpath("vectors", "manifests.json").read_text())


@pytest.mark.parametrize("vector", VECTORS["manifests"], ids=lambda v: v["name"])
def test_the_manifests_of_the_vectors_are_read(vector: dict[str, Any]) -> None:
    value = vector["value"]
    numbers = [value["sequence"], value["size"], len(value["add"]), len(value["revoke"])]
    for form in ("envelope", "unsigned"):
        assert core.envelope(bytes.fromhex(vector[form])) == (0, numbers)


MALFORMED = [v for v in VECTORS["refused"] if v["why"] in ("shape", "range", "unknown key")]


@pytest.mark.parametrize("vector", MALFORMED, ids=lambda v: v["name"])
def test_what_is_no_manifest_in_the_vectors_is_refused(vector: dict[str, Any]) -> None:
    assert core.envelope(bytes.fromhex(vector["hex"]))[0] == 10


@settings(deadline=None, max_examples=500)
@given(st.sampled_from([ENVELOPE, BESIDE]), st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_envelopes_are_read_as_dfud_reads_them(whole: bytes, at: int, value: int, cut: bool) -> None:
    data = bytearray(whole)
    data[at % len(data)] = value
    if cut:
        data = data[: at % len(data)]
    error, fields = core.envelope(bytes(data))
    try:
        manifest = decode_envelope_untrusted(bytes(data))[1]
    except PeerError:
        return  # the core is not as strict about texts; what it takes is signed
    assert (error, fields) == (0, [manifest.sequence, manifest.size, len(manifest.add), len(manifest.revoke)])


@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, 1 << 20),
    st.integers(0, 400),
    st.integers(0, 32),
    st.integers(0, (1 << 32) - 1),
    st.binary(min_size=1, max_size=300),
)
def test_chunks_are_read_as_dfud_writes_them(number: int, page: int, pages: int, crc: int, payload: bytes) -> None:
    data = encode_chunk(Chunk(number, page, pages, crc, payload))
    assert core.chunk(data + b"rest") == (0, [number, page, pages, crc, len(payload), len(data)])
    for length in range(len(data)):
        assert core.chunk(data[:length])[0] == 11


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80))
def test_what_the_core_takes_for_a_chunk_is_one(data: bytes) -> None:
    error, fields = core.chunk(data)
    if error == 0:
        assert decode_chunk_untrusted(data[: fields[5]]).number == fields[0]


def test_every_chunk_of_a_package_is_decoded() -> None:
    data = image("p", 50000)
    out = b""
    for encoded in build_full(data, 4112).chunks:
        found = decode_chunk_untrusted(encoded)
        size = min(len(data) - len(out), found.pages * 4096)
        error, piece = core.zstd(found.payload, size, out)
        assert error == 0
        out += piece
    assert out == data
