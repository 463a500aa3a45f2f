"""What the tests of the agent's CoAP client share: jobs for tests/devicefw/coapdrive.py on real MicroPython."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import trio

from devicefw.sim.compile import agent_modules
from tests.real_parts import require

HERE = Path(__file__).parent
HEAP = "118K"
LIMIT_S = 120


def command(tmp_path: Path, job: dict[str, Any], script: str = "coapdrive.py", heap: str = HEAP) -> list[str]:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    return [require("micropython"), "-X", f"heapsize={heap}", str(HERE / script), str(agent_modules()), str(path)]


def job(host: str, *steps: list[Any], auth: bool = True, **config: Any) -> dict[str, Any]:
    base = {
        "url": f"coap://{host}",
        "device": "lamp1",
        "app": "lamps",
        "secret": "geheim",
        "ack_timeout_ms": 300,
    }
    return {"config": base | config, "auth": auth, "steps": list(steps)}


def _results(stdout: bytes | str) -> tuple[list[Any], dict[str, int]]:
    *results, counts = [json.loads(line) for line in stdout.splitlines()]
    return results, counts


def drive(tmp_path: Path, one: dict[str, Any]) -> tuple[list[Any], dict[str, int]]:
    """Run a job; return the result of each step, and the counts."""
    run = subprocess.run(command(tmp_path, one), capture_output=True, text=True, timeout=LIMIT_S)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    return _results(run.stdout)


async def adrive(tmp_path: Path, one: dict[str, Any]) -> tuple[list[Any], dict[str, int]]:
    """The same beside a server in this process."""
    with trio.fail_after(LIMIT_S):
        run = await trio.run_process(command(tmp_path, one), capture_stdout=True, capture_stderr=True, check=False)
    assert (run.returncode, run.stderr) == (0, b""), run.stdout + run.stderr
    return _results(run.stdout)
