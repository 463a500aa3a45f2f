"""How fast the agent's own code decodes on this machine's MicroPython: as viper, as it is shipped, and as plain bytecode.

A host says nothing of a chip's speed but the ratio of the two.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from dfud.package.file import PackageFile

ROOT = Path(__file__).parents[1]
INNER = ("zviper.py", "mviper.py")


class Speed(msgspec.Struct, frozen=True):
    """Bytes of image a second."""

    viper: float
    bytecode: float


def _run(modules: Path, data: Path, package: PackageFile) -> float:
    beside = Path(sys.executable).with_name("micropython")
    command = [str(beside if beside.exists() else shutil.which("micropython")), "-X", "heapsize=64M"]
    run = subprocess.run([*command, str(ROOT / "bench" / "agent_decode.py"), str(modules), str(data)], capture_output=True, text=True)
    microseconds, _, digest = run.stdout.strip().partition(" ")
    if run.returncode or digest != package.sha256.hex():
        raise RuntimeError(f"the agent does not decode it: {run.stdout[-200:]}{run.stderr[-600:]}")
    return package.size / int(microseconds) * 1e6


def speed(package: PackageFile, base: bytes) -> Speed:
    """Decode the package both ways. Raises RuntimeError if what comes out is not the image."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        numbers = [len(base), package.size, int(package.kind), len(package.chunks), *map(len, package.chunks)]
        (directory / "data").write_bytes(struct.pack(f"<{len(numbers)}I", *numbers) + base + b"".join(package.chunks))
        for name in ("viper", "plain"):
            shutil.copytree(ROOT / "devicefw" / "dfu", directory / name / "dfu")
        for name in INNER:
            file = directory / "plain" / "dfu" / name
            # Without the decorator it is compiled as everything else is; its casts need a meaning then.
            file.write_text(file.read_text().replace("@micropython.viper\n", "").replace("import micropython\n", "uint = int\n"))
        return Speed(*(_run(directory / name, directory / "data", package) for name in ("viper", "plain")))
