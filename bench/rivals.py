"""The tools that bench/delta.py compares, each run in a process of its own: `python -m bench.rivals TOOL OLD NEW OUT`.

Every tool also applies what it made, and gives the new image back, or its result does not count. Prints one JSON object.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import zstandard

from dfud.package.apply import apply_package
from dfud.package.build import build_package
from dfud.package.file import PackageFile, read_package_untrusted, write_package
from dfud.package.mapping import make_tables
from dfud.package.table import encode_table, segments
from dfud.package.view_numpy import Absolute, view
from dfud.wire.messages import Kind

PAYLOAD_BYTES = 6144  # the agent's, if its configuration does not say otherwise
TIMEOUT_S = 900


class Result(msgspec.Struct, frozen=True):
    """bytes: what goes over the air; ram_bytes: what it (or its largest worker) took beyond the images; how: the variant that won."""

    tool: str
    bytes: int
    seconds: float
    ram_bytes: int
    how: str = ""


Made = tuple[int, str, bytes]  # bytes that count, variant, what to write
Tool = Callable[[bytes, bytes], Made]


def _best(found: dict[str, bytes]) -> Made:
    how = min(found, key=lambda name: len(found[name]))
    return len(found[how]), how, found[how]


def _check(same: bool, what: str) -> None:
    if not same:
        raise AssertionError(f"{what}: applied, it is not the new image")


def full_zstd(old: bytes, new: bytes) -> Made:
    made = zstandard.ZstdCompressor(level=22).compress(new)
    _check(zstandard.ZstdDecompressor().decompress(made) == new, "zstd")
    return len(made), "-22", made


def full_xz(old: bytes, new: bytes) -> Made:
    made = lzma.compress(new, preset=9 | lzma.PRESET_EXTREME)
    _check(lzma.decompress(made) == new, "xz")
    return len(made), "-9e", made


def zstd_patch(prefix: bytes, data: bytes) -> bytes:
    """Compress `data` as one frame whose window holds all of `prefix`: zstd -22 --patch-from."""
    log = max(10, (len(prefix) + len(data)).bit_length())
    settings = zstandard.ZstdCompressionParameters.from_level(22, window_log=log, enable_ldm=True, write_content_size=True)
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    made = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=settings).compress(data)
    again = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << 27).decompress(made)
    _check(again == data, "zstd --patch-from")
    return made


def patch_from(old: bytes, new: bytes) -> Made:
    made = zstd_patch(old, new)
    return len(made), "-22", made


def bsdiff(old: bytes, new: bytes) -> Made:
    import bsdiff4

    made = bsdiff4.diff(old, new)
    _check(bsdiff4.patch(old, made) == new, "bsdiff4")
    return len(made), "bz2", made


def detools(old: bytes, new: bytes) -> Made:
    import detools

    found = {}
    for algorithm, compression in (("bsdiff", "lzma"), ("bsdiff", "bz2"), ("bsdiff", "zstd"), ("hdiffpatch", "lzma")):
        kind = "hdiffpatch" if algorithm == "hdiffpatch" else "sequential"
        out, again = io.BytesIO(), io.BytesIO()
        options = {"compression": compression, "patch_type": kind, "algorithm": algorithm, "use_mmap": False}
        detools.create_patch(io.BytesIO(old), io.BytesIO(new), out, **options)
        detools.apply_patch(io.BytesIO(old), io.BytesIO(out.getvalue()), again)
        _check(again.getvalue() == new, f"detools {algorithm}")
        found[f"{algorithm} {compression}"] = out.getvalue()
    return _best(found)


def hdiffpatch(old: bytes, new: bytes) -> Made:
    import hdiffpatch

    found = {}
    for name in ("LZMA2", "BZIP2", "ZSTD"):
        made = hdiffpatch.diff(old, new, getattr(hdiffpatch, f"COMPRESSION_{name}"))
        _check(hdiffpatch.apply(old, made) == new, f"hdiffpatch {name}")
        found[name.lower()] = made
    return _best(found)


def _ours(kind: Kind) -> Tool:
    def make(old: bytes, new: bytes) -> Made:
        base = None if kind == Kind.FULL else old
        package = build_package(new, base, kinds=1 << kind, payload_bytes=PAYLOAD_BYTES, workers=os.cpu_count() or 1)
        _check(package.kind == kind and apply_package(package, base) == new, f"dfud kind {kind}")
        return package.total_bytes, f"{len(package.chunks)} chunks", write_package(package)

    return make


TOOLS: dict[str, Tool] = {
    "zstd": full_zstd,
    "xz": full_xz,
    "zstd patch": patch_from,
    "bsdiff4": bsdiff,
    "detools": detools,
    "hdiffpatch": hdiffpatch,
    "dfud 1": _ours(Kind.FULL),
    "dfud 2": _ours(Kind.DELTA),
    "dfud 3": _ours(Kind.MAPPED),
}
# Both images have segments to map: otherwise there is no package of kind 3, and what dfud sends is of kind 2.
ONLY_ESP = "dfud 3"


def unchunked_mapped(old: bytes, new: bytes) -> int:
    """Return what kind 3 would weigh as one frame with its table, without the heads of chunks, from the best of its tables."""
    found = []
    for table in make_tables(old, new):
        packed = encode_table(table, segments(old))
        frame = zstd_patch(view(old, table)[0], Absolute(new, table.new).of(0, len(new)))
        found.append(len(frame) + min(len(packed), len(zstandard.ZstdCompressor(level=22).compress(packed))))
    return min(found)


def run(tool: str, old: Path, new: Path, out: Path) -> Result:
    """Run one tool in a process of its own. Raises RuntimeError with the end of what it said if it fails."""
    command = [sys.executable, "-m", "bench.rivals", tool, str(old), str(new), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{tool}: {done.stderr[-600:]}")
    return msgspec.json.decode(done.stdout, type=Result)


def package_of(out: Path) -> PackageFile:
    return read_package_untrusted(out.read_bytes())


def _memory_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def main(arguments: list[str]) -> None:
    name, old_path, new_path, out = arguments
    old, new = Path(old_path).read_bytes(), Path(new_path).read_bytes()
    before = _memory_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    start = time.perf_counter()
    size, how, made = TOOLS[name](old, new)
    seconds = time.perf_counter() - start
    Path(out).write_bytes(made)
    peak = max(_memory_bytes("VmHWM"), 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    print(msgspec.json.encode(Result(name, size, seconds, max(0, peak - before), how)).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
