"""The vectors, read by the agent's code on real MicroPython and on CPython, as dfud reads them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dfud.errors import PeerError
from dfud.package.apply import apply_package, decode_chunk
from dfud.package.file import make
from dfud.wire.chunk import decode_chunk_untrusted
from tests.real_parts import require

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
CHECKED = "checked 304\n"
CHUNKS = json.loads((VECTORS / "chunks.json").read_text())


@pytest.mark.parametrize("interpreter", ["micropython", "cpython"])
def test_the_agent_reads_every_vector_as_dfud_does(interpreter: str) -> None:
    program = require("micropython") if interpreter == "micropython" else sys.executable
    check = Path(__file__).with_name("vcheck.py")
    run = subprocess.run([program, str(check), str(ROOT / "devicefw"), str(VECTORS)], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == (CHECKED, "")


def test_mapped_deltas_are_the_same_in_words_of_32_bits() -> None:
    """The host's viper has 64-bit words and loads them unsigned, the chip's has neither: this is its arithmetic."""
    check = Path(__file__).with_name("vcheck.py")
    arguments = [str(check), str(ROOT / "devicefw"), str(VECTORS), str(check.parent)]
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == (CHECKED, "")


@pytest.mark.parametrize("vector", CHUNKS["packages"], ids=lambda v: v["name"])
def test_dfud_reads_the_packages(vector: dict[str, object]) -> None:
    base = bytes.fromhex(str(vector["base"]))
    chunks = [bytes.fromhex(c) for c in vector["chunks"]]  # type: ignore[attr-defined]  # the file's own shape
    digest = hashlib.sha256(base).digest() if base else None
    size, kind = int(str(vector["size"])), int(str(vector["kind"]))
    package = make(kind, size, bytes.fromhex(str(vector["sha256"])), digest, chunks)
    assert len(apply_package(package, base or None)) == size


@pytest.mark.parametrize("vector", CHUNKS["refused"]["chunks"], ids=lambda v: v["why"])
def test_dfud_refuses_what_devices_refuse(vector: dict[str, str]) -> None:
    package = make(1, CHUNKS["refused"]["size"], bytes(32), None, [b"x"])
    with pytest.raises(PeerError):
        chunk = decode_chunk_untrusted(bytes.fromhex(vector["hex"]))
        if not chunk.pages:
            raise PeerError("a table in a full package")
        decode_chunk(chunk, package, None, b"")
