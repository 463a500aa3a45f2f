"""Real rv32 machine code of realistic size, for images that look like an application's: a well-known C source out of a registry
package, cross-compiled for the chip. Made once, kept under build/."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from filelock import FileLock

from devicefw.sim.compile import BUILD

COMPILER = "riscv64-unknown-elf-gcc"
FLAGS = ("-march=rv32imc", "-mabi=ilp32", "-ffreestanding", "-ffunction-sections", "-w", "--specs=picolibc.specs")
# name, version, SHA-256 of the source package
SOURCES = {
    "zstandard": ("0.25.0", "7713e1179d162cf5c7906da876ec2ccb9c3a9dcbdffef0cc7f70c3667a205f0b"),
}


class Missing(Exception):
    """The compiler or a source package is not to be had here; the message says what to do."""


def source(name: str) -> Path:
    """Return the unpacked source package, downloaded through pip's registry and checked. Raises Missing."""
    version, digest = SOURCES[name]
    target = BUILD / "sources" / f"{name}-{version}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=_made(BUILD / "sources")) as temporary:
        # Hashes are checked by pip; nothing of the package is run but the metadata of its build.
        requirement = Path(temporary) / "requirement"
        requirement.write_text(f"{name}=={version} --hash=sha256:{digest}\n")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--require-hashes",
        ]
        run = subprocess.run([*command, "-d", temporary, "-r", str(requirement)], capture_output=True, text=True)
        archive = next(Path(temporary).glob("*.tar.gz"), None)
        if archive is None:
            raise Missing(f"{name} {version} cannot be downloaded: {run.stderr.strip().splitlines()[-1:]}")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != digest:
            raise Missing(f"{name} {version} arrived with another SHA-256 than it should have")
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian's 3.11.2 has none
            tar.extractall(temporary)  # noqa: S202 its SHA-256 is right
        (Path(temporary) / f"{name}-{version}").rename(target)
    return target


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def machine_code(size_bytes: int) -> bytes:
    """Return `size_bytes` of compiled code: the sources built at several optimisation levels. Raises Missing."""
    if shutil.which(COMPILER) is None:
        raise Missing(f"{COMPILER} is not installed (Debian: gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf)")
    out = b""
    with FileLock(_made(BUILD / "sources") / ".lock"):  # whoever else wants it waits until it is there
        for level in ("-Os", "-O1", "-O2", "-O3"):
            for name in SOURCES:
                if len(out) < size_bytes:
                    out += _compiled(name, level)
    while len(out) < size_bytes:
        out += out
    return out[:size_bytes]


def _compiled(name: str, level: str) -> bytes:
    target = BUILD / "sources" / f"{name}{level}.text"
    if target.exists():
        return target.read_bytes()
    root = source(name)
    file = _without_threads(root / "zstd" / "zstd.c")
    with tempfile.TemporaryDirectory() as temporary:
        elf = Path(temporary) / "object.o"
        command = [COMPILER, *FLAGS, level, f"-I{file.parent}", "-c", str(file), "-o", str(elf)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise Missing(f"{file.name} does not compile: {run.stderr[-300:]}")
        text = _code_of(elf)
    if not text:
        raise Missing(f"nothing of {name} compiles for the chip")
    _write(target, text)
    return text


def _write(target: Path, data: bytes) -> None:
    """Have all of a file or nothing of it, whenever this process is ended."""
    part = target.with_name(target.name + ".part")
    part.write_bytes(data)
    part.rename(target)


def _without_threads(path: Path) -> Path:
    target = path.with_name("single.c")
    if not target.exists():
        _write(target, path.read_bytes().replace(b"#define ZSTD_MULTITHREAD", b""))
    return target


def _code_of(elf: Path) -> bytes:
    from elftools.elf.elffile import ELFFile

    with elf.open("rb") as file:
        sections = ELFFile(file).iter_sections()
        return b"".join(
            s.data() for s in sections if s.name.startswith((".text", ".rodata")) and s["sh_type"] == "SHT_PROGBITS"
        )
