"""`python -m tests.prepare`: makes what tests compile or build, once and beside other work, instead of each worker as it needs it.

What cannot be made here is left to the tests that need it: they say why.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from devicefw.sim.compile import agent_modules
from devicefw.sim.demo import CODE_BYTES
from devicefw.sim.rv32 import machine_code
from tests.bootloader.core import made


def bytecode() -> None:
    """Import every test, so that its compiled form is kept: pytest's rewriting takes longer than most tests."""
    subprocess.run([sys.executable, "-m", "pytest", "-q", "--collect-only"], stdout=subprocess.DEVNULL, check=True)


STEPS: tuple[Callable[[], object], ...] = (
    bytecode,
    lambda: made("host", "fuzzers", "replays"),
    lambda: machine_code(CODE_BYTES),
    *((lambda arch=arch: agent_modules(arch)) for arch in ("x64", "rv32imc", "armv7emsp")),
)

if __name__ == "__main__":
    for step in STEPS:
        try:
            step()
        except Exception as error:
            print(f"prepare: {type(error).__name__}: {error}", file=sys.stderr)
