"""`python -m tests.prepare`: makes what tests compile or build, once, instead of each worker as it needs it. `late`: what few need,
and not at once; tests that come to it before it is there wait for it.

What cannot be made here is left to the tests that need it: they say why.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devicefw.sim.compile import BUILD, agent_modules
from devicefw.sim.demo import CODE_BYTES
from devicefw.sim.rv32 import machine_code
from tests.bootloader.core import made

TESTS = Path(__file__).parent
FEW = 30


def bytecode() -> None:
    """Import every test, so that its compiled form is kept: pytest's rewriting takes longer than most tests. For the few files that
    have changed since, each worker does that by itself."""
    if sys.dont_write_bytecode:
        return
    stamp = BUILD / ".bytecode"
    since = stamp.stat().st_mtime if stamp.exists() else 0.0
    if sum(path.stat().st_mtime > since for path in TESTS.rglob("*.py")) > FEW:
        subprocess.run([sys.executable, "-m", "pytest", "-q", "--collect-only"], stdout=subprocess.DEVNULL, check=True)
        stamp.touch()


STEPS: tuple[Callable[[], object], ...] = (
    bytecode,
    lambda: made("host", "fuzzers", "replays"),
    *((lambda arch=arch: agent_modules(arch)) for arch in ("x64", "rv32imc", "armv7emsp")),
)
LATE: tuple[Callable[[], object], ...] = (lambda: machine_code(CODE_BYTES),)


def take(step: Callable[[], object]) -> None:
    try:
        step()
    except Exception as error:
        print(f"prepare: {type(error).__name__}: {error}", file=sys.stderr)


if __name__ == "__main__":
    with ThreadPoolExecutor(2) as side_by_side:
        for step in LATE if sys.argv[1:] == ["late"] else STEPS:
            side_by_side.submit(take, step)
