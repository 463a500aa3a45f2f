"""The simulator's esp32, machine and network do what MicroPython says of an ESP32's; docs/simulator.md names all that they have."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devicefw.sim.compile import SHIMS
from dfud.board.flashmap import LAYOUTS, find
from tests.real_parts import require

PAGE = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text("utf-8")
BEGIN = "import sys\nsys.path.insert(0, {!r})\nimport chip, esp32, network\nP = esp32.Partition\n"
HELPERS = """
def error(function, *values):
    try:
        return function(*values)
    except Exception as found:
        return type(found).__name__, found.args
"""


def run(folder: Path, program: str, **start: Any) -> Any:
    """Run a program on a board's modules; return what it has put into `out`."""
    if not (folder / "flash.bin").exists():
        (folder / "flash.bin").write_bytes(bytes(range(256)) * (4 << 12))
        (folder / "operations").write_bytes(b"%12d" % 0)
        (folder / "rtc").write_bytes(bytes(32))
    said = {"flash": str(folder / "flash.bin"), "slot": 1, "reset_reason": 1, "partitions": LAYOUTS["4MB"], "operations": 0}
    (folder / "board.json").write_text(json.dumps({**said, "cut_at": None, "cut_how": "", **start}))
    text = BEGIN.format(str(SHIMS)) + HELPERS + "out = []\n" + program
    (folder / "program.py").write_text(text + "\nimport json\nprint('out', json.dumps(out))\n")
    command = [require("micropython"), str(folder / "program.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = [line for line in done.stdout.splitlines() if line.startswith("out ")]
    return json.loads(lines[0][4:]) if lines else done.returncode


def test_partitions_are_those_of_the_table_and_nor_flash(tmp_path: Path) -> None:
    program = """
part = P.find(P.TYPE_DATA, label="app_b")[0]
out += [part.info(), P(P.RUNNING).info()[4], P("ota_0").info()[2], len(P.find(P.TYPE_APP)), error(P, "none")]
out += [part.ioctl(4, 0), part.ioctl(5, 0), part.ioctl(3, 0)]
one = bytearray(4)
part.readblocks(2, one, 10)
out.append(list(one))
part.writeblocks(2, b"\\xf0\\xff", 10)
part.readblocks(2, one, 10)
out.append(list(one))
out.append(part.ioctl(6, 2))
part.readblocks(2, one, 10)
out.append(list(one))
part.writeblocks(2, b"\\x01" * 4096)
part.writeblocks(2, b"\\x02" * 4096)
part.readblocks(2, one)
out.append(list(one))
part.readblocks(3, one)
out.append(list(one))
out += [error(part.readblocks, 24, one), error(part.readblocks, 23, one, 4093), error(part.writeblocks, 24, one, 0)]
"""
    part = find(LAYOUTS["4MB"], "app_b")
    info, label, offset, apps, none, *rest = run(tmp_path, program)
    assert info == [*part, False] and (label, offset, apps, none) == ("ota_1", 0x10000, 2, ["OSError", [2]])
    assert rest[:3] == [part.size // 4096, 4096, 0]
    assert rest[3:5] == [[10, 11, 12, 13], [10 & 0xF0, 11, 12, 13]], "programming clears bits and sets none"
    assert rest[5:7] == [0, [255] * 4]
    assert rest[7:9] == [[2] * 4, [0, 1, 2, 3]], "without an offset it is erased before, and that sector alone"
    assert rest[9:] == [["OSError", [22]]] * 3


@pytest.mark.parametrize("how", ["before", "half"])
def test_a_power_cut_leaves_nothing_of_an_operation_or_half_of_it(tmp_path: Path, how: str) -> None:
    program = "part = P.find(P.TYPE_DATA, label='app_b')[0]\npart.ioctl(6, 0)\npart.writeblocks(0, bytes(8), 0)\nout.append(1)\n"
    assert run(tmp_path, program, cut_at=2, cut_how=how) == 71, "it is off"
    at = find(LAYOUTS["4MB"], "app_b").offset
    assert (tmp_path / "flash.bin").read_bytes()[at : at + 8] == (b"\xff" * 8 if how == "before" else bytes(4) + b"\xff" * 4)


def test_nvs_keeps_what_was_committed_and_gives_the_port_s_errors(tmp_path: Path) -> None:
    program = """
one, same = esp32.NVS("lamp"), esp32.NVS("lamp")
out += [error(one.get_i32, "n"), error(one.get_blob, "b", bytearray(2))]
one.set_i32("n", -7)
one.set_blob("b", b"abc")
out += [same.get_i32("n"), error(esp32.NVS("other").get_i32, "n")]
one.commit()
buffer = bytearray(5)
out += [error(one.get_blob, "b", bytearray(2)), one.get_blob("b", buffer), list(buffer)]
one.set_i32("n", 8)
"""
    missing, short = ["OSError", [-0x1102]], ["OSError", [-0x110C]]
    assert run(tmp_path, program) == [missing, missing, -7, missing, short, 3, [97, 98, 99, 0, 0]]
    assert run(tmp_path, "out += [esp32.NVS('lamp').get_i32('n')]") == [-7], "what was not committed is gone"


@pytest.mark.parametrize(("reason", "cause"), [(1, 1), (0xF, 1), (5, 4), (3, 2), (0xC, 2), (0x15, 2), (7, 3), (0x10, 3)])
def test_machine_says_why_it_was_reset_and_keeps_registers_that_outlive_one(tmp_path: Path, reason: int, cause: int) -> None:
    program = "chip.mem32[0x60008050] = 0xdf0c0001\nout += [chip.reset_cause(), len(chip.unique_id()), chip.mem32[0x60008050]]"
    assert run(tmp_path, program, reset_reason=reason) == [cause, 6, 0xDF0C0001]
    assert run(tmp_path, "out += [chip.mem32[0x60008050], chip.mem32[0x600080c0]]") == [0xDF0C0001, 0]
    assert run(tmp_path, "chip.reset()") == 70


def test_a_station_joins_once_it_is_active_and_judges_what_it_is_given(tmp_path: Path) -> None:
    program = """
station = network.WLAN(network.STA_IF)
out += [station.active(), station.isconnected(), error(station.connect, "attic", "secret")]
station.active(True)
out += [error(station.connect, "x" * 33), error(station.connect, ""), error(station.connect, "attic", "p" * 65)]
station.connect("attic", "correct horse")
out += [station.isconnected(), network.WLAN().isconnected(), station.status() == network.STAT_GOT_IP, station.ifconfig()[0]]
station.disconnect()
out += [station.isconnected(), station.ifconfig()[0]]
"""
    wrong = ["ValueError", ["Wifi Invalid Argument"]]
    found = run(tmp_path, program)
    assert found[:6] == [False, False, ["OSError", ["Wifi Not Started"]], wrong, wrong, wrong]
    assert found[6:] == [True, True, True, "127.0.0.1", False, "0.0.0.0"]


def names(file: str, of: str = "") -> set[str]:
    """Return the public names that a stand-in defines, of one class or of the module."""
    body: list[ast.stmt] = ast.parse((SHIMS / f"{file}.py").read_text()).body
    if of:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == of).body
    found = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in body:
        if isinstance(node, ast.Assign):
            found |= {one.id for target in node.targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize(
    ("module", "file", "of"),
    [
        ("esp32.Partition", "esp32", "Partition"),
        ("esp32.NVS", "esp32", "NVS"),
        ("machine", "chip", ""),
        ("machine.UART", "uart", "UART"),
        ("network.WLAN", "network", "WLAN"),
    ],
)
def test_the_page_names_all_that_there_is(module: str, file: str, of: str) -> None:
    (row,) = re.findall(rf"^\| `{re.escape(module)}` \| (.*?) \|", PAGE, re.M)
    assert set(re.findall(r"`(\w+)`", row)) == names(file, of)
