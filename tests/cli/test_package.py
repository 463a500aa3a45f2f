"""dfuctl package: on files alone, no daemon, no login."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.corpus import own_pair
from devicefw.sim.firmware import build
from dfud.package.file import read_package_untrusted
from tests.package.test_build import changed, code
from tests.real_parts import require

OLD = build("print(1)\n", "1.0", code(120_000))
NEW = build("print(2)\n", "1.1", changed(code(120_000)))
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "old.bin").write_bytes(OLD)
    (tmp_path / "new.bin").write_bytes(NEW)

    def run(*arguments: str, status: int = 0, columns: int = 100) -> str:
        command = [sys.executable, "-m", "dfud.cli", *arguments]
        # No home, no configuration: files are all it needs.
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "nowhere"), "COLUMNS": str(columns)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        told = done.stdout + done.stderr
        assert done.returncode == status, told
        assert "Traceback" not in told
        return told

    return run


def files(directory: Path) -> set[str]:
    return {p.name for p in directory.iterdir()}


@pytest.mark.parametrize("kind", ["full", "delta", "mapped"])
def test_a_package_of_a_kind_is_made_and_applied(run: Run, tmp_path: Path, kind: str) -> None:
    base = ["--base", "old.bin"] if kind != "full" else []
    arguments = ["new.bin", "-O", "new.dfup", "--kind", kind, "--payload", "4112", "--workers", "2", *base]
    told = json.loads(run("-o", "json", "package", "make", *arguments))
    made = read_package_untrusted((tmp_path / "new.dfup").read_bytes())
    assert (told["kind"], told["bytes"], told["id"]) == (kind, made.total_bytes, made.id.hex())
    assert told["sha256"] == hashlib.sha256(NEW).hexdigest()
    told_of = run("package", "apply", "new.dfup", "-O", "copy.bin", *base)
    assert f"Wrote copy.bin: {len(NEW)} bytes" in told_of
    assert (tmp_path / "copy.bin").read_bytes() == NEW


def test_the_smallest_of_all_kinds_is_taken(run: Run, tmp_path: Path) -> None:
    told = run("package", "make", "--base", "old.bin", "new.bin", "-O", "a.dfup")
    made = read_package_untrusted((tmp_path / "a.dfup").read_bytes())
    assert (
        made.kind != 1 and f"{made.total_bytes} bytes, {100 * made.total_bytes / len(NEW):.2f} % of the image" in told
    )
    run("package", "make", "new.bin", "-O", "b.dfup")
    assert read_package_untrusted((tmp_path / "b.dfup").read_bytes()).kind == 1
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.dfup").stat().st_mode & 0o777 == 0o666 & ~umask


def test_inspect_says_where_the_bytes_go(run: Run, tmp_path: Path) -> None:
    run("package", "make", "--base", "old.bin", "new.bin", "-O", "a.dfup", "--kind", "delta")
    told = run("package", "inspect", "a.dfup", "--base", "old.bin", "--chunks")
    for word in ("kind 2 (delta)", "sequences", "IROM", "DROM", "heads, tables", "literal: sent", "SEQUENCES"):
        assert word in told
    strip = [line for line in told.splitlines() if line and set(line) <= set("#=-.")]
    assert len("".join(strip)) == 12 * 100 and "#" in "".join(strip), "a change in the middle is seen"
    assert "Give --base to tell mapped bytes" in run("package", "inspect", "a.dfup")
    made = read_package_untrusted((tmp_path / "a.dfup").read_bytes())
    found = json.loads(run("-o", "json", "package", "inspect", "a.dfup", "--base", "old.bin"))
    assert (found["id"], found["bytes"], found["size"]) == (made.id.hex(), made.total_bytes, len(NEW))
    costs = sum(part["cost_bytes"] for part in found["parts"]) + found["table_bytes"] + found["overhead_bytes"]
    assert costs == pytest.approx(made.total_bytes, abs=1)
    assert len(found["chunks"]) == len(made.chunks)


def test_inspect_tells_mapped_bytes_from_copied_ones(run: Run, tmp_path: Path) -> None:
    require("riscv-gcc")
    require("esptool")
    pair = own_pair()
    (tmp_path / "a.bin").write_bytes(pair.old)
    (tmp_path / "b.bin").write_bytes(pair.new)
    run("package", "make", "--base", "a.bin", "b.bin", "-O", "b.dfup", "--kind", "mapped")
    found = json.loads(run("-o", "json", "package", "inspect", "b.dfup", "--base", "a.bin"))
    parts = {part["name"]: part for part in found["parts"]}
    assert (found["kind"], found["mapped_known"], found["chunks"][0]["pages"]) == (3, True, -(-len(pair.new) // 4096))
    assert parts["IROM"]["origins"]["mapped"] > 500
    without = ["--kind", "mapped", "--entries", "0"]
    larger = json.loads(run("-o", "json", "package", "make", "--base", "a.bin", "b.bin", "-O", "c.dfup", *without))
    assert larger["bytes"] > 3 * found["bytes"], "a table without entries maps nothing"
    assert found["table_bytes"] > 40
    costs = sum(part["cost_bytes"] for part in found["parts"]) + found["table_bytes"] + found["overhead_bytes"]
    assert costs == pytest.approx(found["bytes"], abs=1)
    told = run("package", "inspect", "b.dfup", "--base", "a.bin")
    assert "address table" in told and any(set(line) <= set("#=-.") and "=" in line for line in told.splitlines() if line)


def test_the_picture_shows_every_stretch_of_the_image(run: Run, tmp_path: Path) -> None:
    run("package", "make", "--base", "old.bin", "new.bin", "-O", "a.dfup", "--kind", "delta")
    run("package", "inspect", "a.dfup", "--base", "old.bin", "--picture", "a.png")
    run("package", "inspect", "a.dfup", "--base", "old.bin", "--picture", "a.svg")
    png = (tmp_path / "a.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    width, height = struct.unpack_from(">II", png, 16)
    length = struct.unpack_from(">I", png, 33)[0]
    pixels = zlib.decompress(png[41 : 41 + length])
    assert len(pixels) == height * (1 + 3 * width)
    colours = {
        pixels[row + x : row + x + 3] for row in range(1, len(pixels), 1 + 3 * width) for x in range(0, 3 * width, 3)
    }
    assert bytes((214, 220, 226)) in colours, "copied"
    assert any(c[0] > 200 and c[2] < 150 for c in colours), "literals"
    svg = (tmp_path / "a.svg").read_text()
    assert "IROM" in svg and "data:image/png;base64," in svg and "literal: sent" in svg
    assert "ends in .png or .svg" in run("package", "inspect", "a.dfup", "--picture", "a.jpg", status=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("apply", "delta.dfup"), "starts from the image with SHA-256"),
        (
            ("apply", "delta.dfup", "--base", "new.bin"),
            f"it needs the one with SHA-256 {hashlib.sha256(OLD).hexdigest()}",
        ),
        (("apply", "torn.dfup"), "torn.dfup: package: chunk"),
        (("apply", "old.bin"), "old.bin: not a package: it does not start with dfudpkg1"),
        (("apply", "damaged.dfup"), "damaged.dfup: chunk "),
        (("make", "empty"), "empty is empty"),
        (("make", "new.bin", "--kind", "delta"), "give it with --base"),
        (("make", "noise", "--payload", "512"), "noise: page 0 does not fit a payload of 512 bytes"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    run("package", "make", "--base", "old.bin", "new.bin", "-O", "delta.dfup", "--kind", "delta")
    run("package", "make", "new.bin", "-o", "full.dfup")
    full = bytearray((tmp_path / "full.dfup").read_bytes())
    (tmp_path / "torn.dfup").write_bytes(full[:-100])
    full[-9] ^= 1
    (tmp_path / "damaged.dfup").write_bytes(full)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "noise").write_bytes(os.urandom(9000))
    (tmp_path / "kept").write_bytes(b"what was there before")
    before = files(tmp_path)
    told = run("package", arguments[0], *arguments[1:], "-O", "kept", status=1)
    assert message in told and told.startswith("dfuctl: ") and len(told.splitlines()) == 1
    assert files(tmp_path) == before
    assert (tmp_path / "kept").read_bytes() == b"what was there before"


def test_a_place_that_cannot_be_written_is_named(run: Run, tmp_path: Path) -> None:
    told = run("package", "make", "new.bin", "-O", "no/where.dfup", status=1)
    assert "no/where.dfup cannot be written: No such file or directory" in told
