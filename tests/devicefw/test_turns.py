"""How long the agent works before the application has its turn again: its own code, its inner loops as they are on the chip."""

from __future__ import annotations

import builtins
import dis
import sys
from importlib import import_module
from types import FrameType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.chip import BYTECODE_US, DFU, Chip, installed
from bench.corpus import FLAGS, LEVELS, _compiled, _renamed, image_of
from bench.instructions import ROOT
from dfud.package.build import build_delta, build_full, build_mapped
from dfud.package.file import PackageFile
from dfud.wire.chunk import decode_chunk_untrusted
from tests.real_parts import require

TURN_MS = 50
PAGE_MS = 40  # counted: 16 to 32, 11 of them programming
PAYLOAD_BYTES = 6144
# A signature, its import included; a product of it where collections of a full heap come with them: 100 million instructions in all.
SIGNATURE_US, DEAR_PRODUCT_US = 1_000_000, 232


def images() -> tuple[bytes, bytes]:
    """Return two images of which each has a third that the other has not, the rest in another order: a large change."""
    require("riscv-gcc")
    require("esptool")
    root = ROOT / "bootloader" / "core"

    def image(levels: tuple[str, ...]) -> bytes:
        files = sorted(root.glob("*.c"))
        return image_of(
            [
                _renamed(_compiled(file.read_text("utf-8"), root, file.name, (*FLAGS, level)), level)
                for level in levels
                for file in files
            ]
        )

    return image(LEVELS[:3]), image((LEVELS[2], LEVELS[0], LEVELS[3]))


def package_of(kind: str, old: bytes, new: bytes) -> PackageFile:
    if kind == "full":
        return build_full(new, PAYLOAD_BYTES)
    if kind == "delta":
        return build_delta(new, old, PAYLOAD_BYTES)
    return build_mapped(new, old, PAYLOAD_BYTES, history=kind == "mapped, looking back")


@pytest.mark.parametrize("kind", ["full", "delta", "mapped", "mapped, looking back"])
def test_the_application_has_its_turn_every_50_ms_while_a_package_is_decoded(kind: str) -> None:
    old, new = images()
    package = package_of(kind, old, new)
    chunks = range(min(2, len(package.chunks)))
    with Chip() as chip:
        installed(chip, package, old, new, chunks)
    pages = sum(decode_chunk_untrusted(package.chunks[n]).pages for n in chunks)
    longest_us, erased_us = max(chip.turns_us)
    each_ms = chip.work_us / pages / 1000
    print(f"{kind}: {pages} pages, {each_ms:.1f} ms each, {longest_us / 1000:.1f} ms at most, {chip.calls}")
    assert pages > 4 and chip.calls["run"][0] > 2 * pages
    assert ("mapped" in kind) == (chip.calls["view"][0] > 0)
    assert longest_us <= 1000 * TURN_MS, f"{longest_us / 1000:.1f} ms, {erased_us / 1000:.1f} of them erasing"
    assert each_ms <= PAGE_MS, "without the erasing"


def test_a_signature_is_verified_in_steps_and_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes its time is products of 255 bits: they are counted, and bytecodes, those of the import too. 55 million instructions
    in all, at 125 a microsecond; for the second a product is as dear as it was with 100 million, on a heap that is full."""
    monkeypatch.syspath_prepend(str(DFU.parent))
    module = import_module("dfu.ed25519")
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    message = bytes(range(200))
    products = bytecodes = 0
    places = {code: {i.offset for i in dis.get_instructions(code) if i.argrepr == "%"} for code in _codes(module)}

    def power(base: int, exponent: int, modulus: int) -> int:
        nonlocal products
        products += exponent.bit_length() + exponent.bit_count()
        return builtins.pow(base, exponent, modulus)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal products, bytecodes
        if frame.f_code not in places:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            bytecodes += 1
            products += frame.f_lasti in places[frame.f_code]
        return trace

    monkeypatch.setattr(module, "pow", power, raising=False)
    steps: list[tuple[int, int]] = []
    good = False
    sys.settrace(trace)
    for said in module.verifying(key.public_key().public_bytes_raw(), message, key.sign(message)):
        good = said
        steps.append((products, bytecodes))
        products = bytecodes = 0
    sys.settrace(None)
    steps.append((products, bytecodes))
    assert good is True
    every = sum(step[0] for step in steps)
    product_us = (55e6 / 125 - BYTECODE_US * sum(step[1] for step in steps)) / every
    longest_us = max(p * product_us + b * BYTECODE_US for p, b in steps)
    print(f"{len(steps)} steps, {every} products of {product_us:.0f} us, {longest_us / 1000:.1f} ms at most")
    assert 50 < product_us < 250
    assert longest_us <= 1000 * TURN_MS
    of_import = _bytecodes_of_import()
    whole_us = every * DEAR_PRODUCT_US + BYTECODE_US * (of_import + sum(step[1] for step in steps))
    print(f"{of_import} bytecodes of the import, {whole_us / 1000:.0f} ms in all")
    assert whole_us <= SIGNATURE_US


def _bytecodes_of_import() -> int:
    """Return how many bytecodes the module's body takes; with products in it, what it takes for granted is wrong."""
    path = DFU / "ed25519.py"
    code, done = compile(path.read_text("utf-8"), str(path), "exec"), 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal done
        if frame.f_code.co_filename != str(path):
            return None
        assert frame.f_code is code, "the import computes something"
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        done += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        exec(code, {"__name__": "ed25519"})
    finally:
        sys.settrace(None)
    assert not any(i.argrepr == "%" for i in dis.get_instructions(code))
    return done


def _codes(module: Any) -> list[Any]:
    return [f.__code__ for f in vars(module).values() if hasattr(f, "__code__")]
