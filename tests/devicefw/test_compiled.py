"""The set of compiled modules that goes onto a device is whole: nothing in it needs a source that is not copied."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from devicefw.sim.compile import INNER, agent_modules
from dfud.package.build import parameters
from tests.real_parts import require

CHECK = Path(__file__).with_name("zcheck.py")
DATA = b"".join(b"%d, " % (n * n) for n in range(3000))


def decoded(modules: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    frame = zstandard.ZstdCompressor(compression_params=parameters(5)).compress(DATA)
    (directory / "cases").write_text(json.dumps({"frame": frame.hex(), "prefix": "", "size": len(DATA)}) + "\n")
    command = [require("micropython"), "-X", "heapsize=1M", str(CHECK), str(modules), str(directory / "cases")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("arch", "kind"), [("x64", "viper"), ("rv32imc", "plain"), ("armv7emsp", "plain")])
def test_the_compiled_set_runs_with_and_without_viper(tmp_path: Path, arch: str, kind: str) -> None:
    """Machine code of another chip is refused by the interpreter: the same loops are there as bytecode."""
    modules = tmp_path / "modules"
    shutil.copytree(agent_modules(arch), modules)
    assert not list(modules.rglob("*.py")), "nothing but what is copied to a device"
    run = decoded(modules, tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[:2] == [kind, "micropython"]
    loops = [f"from dfu.mapped import form, view, Mapped\nprint({kind!r}, Mapped.__name__)"]
    program = f"import sys\nsys.path.insert(0, {str(modules)!r})\n" + loops[0]
    run = subprocess.run([require("micropython"), "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stdout == f"{kind} Mapped\n", run.stderr


def test_a_set_without_either_says_what_to_copy(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    shutil.copytree(agent_modules("rv32imc"), modules)
    for name in INNER:
        (modules / "dfu" / f"{name}_plain.mpy").unlink()
    run = decoded(modules, tmp_path)
    assert run.returncode and "neither dfu/zviper_plain.mpy nor " in run.stdout, run.stdout


def test_the_set_for_a_chip_is_made_by_one_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "devicefw.sim.compile", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    names = {path.stem for path in (tmp_path / "out" / "dfu").iterdir()}
    sources = {path.stem for path in (Path(__file__).parents[2] / "devicefw" / "dfu").glob("*.py")}
    assert names == sources | {f"{name}_plain" for name in INNER}
    assert {path.suffix for path in (tmp_path / "out" / "dfu").iterdir()} == {".mpy"}
