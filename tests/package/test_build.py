"""Packages: whatever the images are, a package gives exactly the image back; what is damaged is refused."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfud.errors import PeerError
from dfud.package.apply import apply_package, decode_frame_untrusted
from dfud.package.build import build_full, build_package
from dfud.package.file import make, read_package_untrusted, write_package
from dfud.package.made import read_made_untrusted
from dfud.package.worker import DAMAGED
from dfud.wire.chunk import decode_chunk_untrusted
from dfud.wire.messages import Kind
from tests.package.test_mapped import esp

FULL, DELTA, MAPPED = 1 << Kind.FULL, 1 << Kind.DELTA, 1 << Kind.MAPPED


@cache
def code(size: int, seed: int = 1) -> bytes:
    """Bytes that compress about as well as machine code does."""
    rng = random.Random(seed)
    words = [rng.randbytes(4) for _ in range(600)]
    out = bytearray()
    while len(out) < size:
        out += rng.choice(words) if rng.random() < 0.8 else rng.randbytes(4)
    return bytes(out[:size])


def changed(image: bytes, edits: int = 20, seed: int = 2) -> bytes:
    rng = random.Random(seed)
    out = bytearray(image)
    for _ in range(edits):
        out[rng.randrange(len(out))] = rng.randrange(256)
    middle = len(out) // 2
    return bytes(out[:middle] + rng.randbytes(101) + out[middle:])


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 130_000, 400_003])
@pytest.mark.parametrize("payload", [4112, 16384, 65536])
def test_a_full_package_gives_the_image_back(size: int, payload: int) -> None:
    image = code(size)
    package = build_package(image, None, kinds=FULL, payload_bytes=payload)
    assert apply_package(package, None) == image
    chunks = [decode_chunk_untrusted(c) for c in package.chunks]
    assert all(len(c.payload) <= payload and 1 <= c.pages <= 1024 for c in chunks)
    assert sum(c.pages for c in chunks) == -(-size // 4096)


def test_pages_that_do_not_compress_fit_4112_bytes() -> None:
    image = random.Random(5).randbytes(50_000)
    package = build_package(image, None, kinds=FULL, payload_bytes=4112)
    assert apply_package(package, None) == image
    with pytest.raises(PeerError, match="page 0 does not fit a payload of 512 bytes"):
        build_package(image, None, kinds=FULL, payload_bytes=512)


def test_a_delta_is_taken_where_it_is_smaller() -> None:
    base = code(300_000)
    image = changed(base)
    package = build_package(image, base, kinds=FULL | DELTA, payload_bytes=16384)
    assert package.kind == Kind.DELTA
    assert package.base_sha256 == hashlib.sha256(base).digest()
    assert package.total_bytes * 20 < build_full(image, 16384).total_bytes
    assert apply_package(package, base) == image
    with pytest.raises(PeerError, match="another image than the one given"):
        apply_package(package, image)


def test_full_is_taken_where_the_images_share_nothing() -> None:
    package = build_package(code(400_000), random.Random(9).randbytes(9_000), kinds=FULL | DELTA, payload_bytes=16384)
    assert package.kind == Kind.FULL


def test_a_device_that_decodes_nothing_we_make_is_refused() -> None:
    with pytest.raises(PeerError, match="kinds 0x100"):
        build_package(b"x", None, kinds=0x100, payload_bytes=16384)
    with pytest.raises(PeerError, match="none of which"):
        build_package(b"x", None, kinds=DELTA, payload_bytes=16384)


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=20_000), st.binary(max_size=20_000), st.integers(4112, 9000))
def test_any_two_images_make_a_package_that_applies(image: bytes, base: bytes, payload: int) -> None:
    package = build_package(image, base or None, kinds=FULL | DELTA, payload_bytes=payload)
    assert apply_package(package, base) == image
    assert read_package_untrusted(write_package(package)) == package


@given(st.binary(max_size=200))
def test_rubbish_is_no_package(data: bytes) -> None:
    for rubbish in (data, b"dfudpkg1" + data):
        with pytest.raises(PeerError):
            read_package_untrusted(rubbish)


def test_a_torn_file_is_no_package() -> None:
    whole = write_package(build_full(code(20_000), 16384))
    for length in range(0, len(whole), 97):
        with pytest.raises(PeerError):
            read_package_untrusted(whole[:length])
    with pytest.raises(PeerError, match="behind the last chunk"):
        read_package_untrusted(whole + b"x")


def test_a_damaged_chunk_is_named() -> None:
    package = build_full(code(200_000), 16384)
    for number in range(len(package.chunks)):
        chunks = list(package.chunks)
        damaged = bytearray(chunks[number])
        damaged[-9] ^= 0x10
        chunks[number] = bytes(damaged)
        with pytest.raises(PeerError, match=f"chunk {number}"):
            apply_package(make(package.kind, package.size, package.sha256, None, chunks), None)


@settings(deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=100))
def test_no_frame_raises_anything_but_one_error(payload: bytes, prefix: bytes) -> None:
    try:
        assert len(decode_frame_untrusted(payload, prefix, 4096)) == 4096
    except PeerError:
        pass


def test_the_worker_leaves_a_package_and_its_key(tmp_path: Path) -> None:
    base = code(50_000)
    image = changed(base)
    (tmp_path / "base").write_bytes(base)
    (tmp_path / "image").write_bytes(image)
    images = (str(tmp_path / "image"), hashlib.sha256(image).hexdigest(), str(tmp_path / "base"), hashlib.sha256(base).hexdigest())
    run = [sys.executable, "-m", "dfud.package.worker", *images, "6", "16384"]
    subprocess.run([*run, str(tmp_path), "the-key"], check=True)
    made = read_made_untrusted((tmp_path / "the-key.key").read_text())
    package = read_package_untrusted((tmp_path / f"{made[0].package}.dfup").read_bytes())
    assert (package.kind, package.total_bytes) == (made[0].kind, made[0].total_bytes) and made[0].work_ms > 100
    assert apply_package(package, base) == image
    # A delta with the same chunks from another base would stand for it: the full package is made.
    others = make(package.kind, package.size, package.sha256, b"o" * 32, package.chunks)
    (tmp_path / f"{made[0].package}.dfup").write_bytes(write_package(others))
    subprocess.run([*run, str(tmp_path), "another-key"], check=True)
    kinds = {one.package: one.kind for one in read_made_untrusted((tmp_path / "another-key.key").read_text())}
    assert kinds and made[0].package not in kinds and set(kinds.values()) == {1}
    assert read_package_untrusted((tmp_path / f"{made[0].package}.dfup").read_bytes()).base_sha256 == b"o" * 32
    failed = subprocess.run([*run, str(tmp_path / "nowhere"), "k"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "No such file" in failed.stderr
    (tmp_path / "image").write_bytes(image[:-1])
    torn = subprocess.run([*run, str(tmp_path), "torn"], capture_output=True, text=True)
    assert (torn.returncode, (tmp_path / "torn.key").exists()) == (DAMAGED, False)
    assert "the stored image is damaged" in torn.stderr


@pytest.mark.parametrize(("kinds", "steps"), [(FULL, 6), (DELTA, 1), (FULL | DELTA | MAPPED, 2)])
def test_progress_counts_up_to_the_whole(kinds: int, steps: int) -> None:
    old, new = code(120_000), changed(code(120_000))
    for base, image in ((old, new), (esp([(0x42000020, old)]), esp([(0x42000020, new)]))):
        seen: list[tuple[int, int]] = []
        build_package(image, base, kinds=kinds, payload_bytes=4112, progress=lambda *a, to=seen: to.append(a))
        done, totals = zip(*seen, strict=True)
        assert list(done) == sorted(done) and len(set(totals)) == 1
        assert done[-1] == totals[0]
        assert len(set(done)) >= steps
        package = build_package(image, base, kinds=kinds, payload_bytes=4112)
        applied: list[tuple[int, int]] = []
        assert apply_package(package, base if package.base_sha256 else None, lambda *a, to=applied: to.append(a)) == image
        assert len(applied) == len(package.chunks) and applied[-1] == (len(image), len(image))
