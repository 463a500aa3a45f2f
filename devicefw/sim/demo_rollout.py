"""`make demo-rollout`: a fleet of boards with the real agent, a good version in three waves, a bad one that stops at the first.

Uses what a user would use: dfud and dfuctl. The images are small, so that two cores carry twenty boards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import trio

from devicefw.sim.board import Board
from devicefw.sim.demo import Dfuctl, console, say
from devicefw.sim.firmware import build, program
from devicefw.sim.processes import until_signalled
from dfud.model.text import visible
from dfud.testing.daemon import DaemonProcess

APP = "lamps"
STARTING_AT_ONCE = 4  # boards whose boot stage runs at one time: each is a chip that is emulated
VERSIONS = {"1.0": "good", "1.1": "good", "1.2": "crash"}


@click.command()
@click.option("--boards", default=20, show_default=True, type=click.IntRange(3, 200), help="How many boards.")
@click.option("--minutes", default=15, show_default=True, type=click.IntRange(1, 120), help="After which to give up.")
def main(boards: int, minutes: int) -> None:
    """Roll a good version out in three waves, and a bad one that stops itself."""
    with tempfile.TemporaryDirectory() as directory:
        trio.run(until_signalled, lambda: _within(Path(directory), boards, minutes))


async def _within(directory: Path, boards: int, minutes: int) -> None:
    with trio.move_on_after(minutes * 60) as scope:
        await Demo(directory, boards).run()
    if scope.cancelled_caught:
        raise SystemExit(f"the demonstration was not over after {minutes} minutes")


async def _until(ask: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so; the whole demonstration has a time limit."""
    while True:
        if await ask():
            return
        await trio.sleep(0.3)


def waves(boards: int) -> list[dict[str, Any]]:
    """Return three waves: a few, some, all. The first one that fails counts."""
    first = max(1, boards // 10)
    third = max(first + 1, boards // 3)
    same = {"soakS": 2, "error": {"count": 1}}
    return [{"count": first, **same}, {"count": third, **same}, {"percent": 100, **same}]


class Demo:
    """One daemon and its boards, in a directory of their own."""

    def __init__(self, directory: Path, number: int) -> None:
        self._directory = directory
        self._number = number
        self._dfuctl = Dfuctl(directory)
        self._boards: dict[str, Board] = {}
        self._began = time.monotonic()

    async def run(self) -> None:
        images = {version: build(program(kind, version), version) for version, kind in VERSIONS.items()}
        say(f"dfud, and {self._number} boards: each a boot stage on an emulated chip and the real agent on real MicroPython")
        daemon = DaemonProcess(self._directory / "dfud")
        await daemon.init()
        async with trio.open_nursery() as nursery:
            await nursery.start(daemon.run)
            await self._prepare(daemon, images)
            await self._boot(daemon, images["1.0"], nursery)
            await self._good()
            await self._bad()
            nursery.cancel_scope.cancel()
        say(
            "Done: a good version reached every board in three waves, a bad one stopped at the first, "
            f"in {time.monotonic() - self._began:.0f} s."
        )

    async def _prepare(self, daemon: DaemonProcess, images: dict[str, bytes]) -> None:
        dfuctl = self._dfuctl
        await dfuctl("login", daemon.urls["registry"], "--token", daemon.token, secret=True)
        await dfuctl("app", "create", APP, "--unsigned")
        await dfuctl("context", "--app", APP)
        for version, image in images.items():
            path = self._directory / f"lamp-{version}.bin"
            path.write_bytes(image)
            publish = ("firmware", "publish", str(path), "--version", version, "--hardware", "esp32c3")
            await dfuctl(*publish, show=False)
        await dfuctl("firmware", "list")

    async def _boot(self, daemon: DaemonProcess, image: bytes, nursery: trio.Nursery) -> None:
        """Make the devices and switch their boards on, a few at a time; return when all of them have reported."""
        async with daemon.client() as client:
            for number in range(self._number):
                name = f"lamp{number:02}"
                body = {"metadata": {"name": name, "application": APP, "labels": {"demo": "yes"}}}
                (await client.post(f"/api/registry/v1alpha1/apps/{APP}/devices", json=body)).raise_for_status()
                answer = await client.post(f"/api/dfu/v1/apps/{APP}/secret/{name}")
                settings = {
                    "url": daemon.urls["http"],
                    "app": APP,
                    "device": name,
                    "secret": answer.json()["secret"],
                    "wait_s": 20,
                    "confirm_s": 10,
                    "watchdog_s": 5,
                    "backoff_ms": 500,
                }
                self._boards[name] = Board(self._directory / name, settings, image=image)
                nursery.start_soon(self._boards[name].run)
                await _until(self._few_are_starting)
                if (number + 1) % 5 == 0:
                    console.print(f"{number + 1} of {self._number} boards are switched on")
            await _until(self._all_have_reported)
        console.print(f"all {self._number} boards have reported")

    async def _few_are_starting(self) -> bool:
        return sum(not board.version_line() for board in self._boards.values()) < STARTING_AT_ONCE

    async def _all_have_reported(self) -> bool:
        return not (await self._fleet())["neverReported"]

    async def _all_run_the_good_one(self) -> bool:
        return bool((await self._fleet())["versions"] == {"1.1": self._number})

    async def _fleet(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self._dfuctl("-o", "json", "fleet", show=False))
        return found

    async def _good(self) -> None:
        say("A good version: 1.1, first as a plan, then in three waves")
        (self._directory / "waves.json").write_text(json.dumps({"waves": waves(self._number)}))
        spec = ("--spec", str(self._directory / "waves.json"))
        await self._dfuctl("rollout", "plan", "1.1", *spec)
        await self._dfuctl("rollout", "create", "good", "1.1", *spec)
        if await self._watch("good"):
            raise SystemExit("the good version did not reach every board")
        await self._dfuctl("rollout", "show", "good")
        await self._dfuctl("fleet")
        said = Counter(board.version_line().rpartition(" ")[2] for board in self._boards.values())
        if said != {"1.1": self._number}:
            raise SystemExit(f"the boards run {dict(said)}, expected {self._number} times 1.1")

    async def _bad(self) -> None:
        say("A bad version: 1.2 divides by zero before it confirms itself")
        await self._dfuctl("rollout", "create", "bad", "1.2", "--spec", str(self._directory / "waves.json"))
        if await self._watch("bad") != 3:
            raise SystemExit("the bad version did not stop itself")
        say("What happened stands at the top")
        told = await self._dfuctl("rollout", "show", "bad")
        if "ZeroDivisionError" not in told.splitlines()[0]:
            raise SystemExit("the traceback is not at the top of `dfuctl rollout show`")
        # Those of the first wave are back on what they ran, and nobody else was told.
        await _until(self._all_run_the_good_one)
        first = waves(self._number)[0]["count"]
        status = json.loads(await self._dfuctl("-o", "json", "rollout", "show", "bad", show=False))["status"]
        if len(status["waves"]) != 1 or not 1 <= status["waves"][0]["told"] <= first:
            raise SystemExit(f"more than the first wave was told: {status['waves']}")
        await self._dfuctl("fleet")
        waits = next(name for name in self._boards if name not in {f["device"] for f in status["failures"]})
        say(f"Why {waits} does not get it")
        await self._dfuctl("explain", waits)

    async def _watch(self, name: str) -> int:
        """Show `dfuctl rollout show --watch` as it runs; return its exit code."""
        console.print(f"$ dfuctl rollout show {name} --watch", style="dim")
        process = await trio.lowlevel.open_process(
            self._dfuctl.command("rollout", "show", name, "--watch"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        try:
            async with process.stdout:
                rest = b""
                while data := await process.stdout.receive_some(4096):
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        console.print(f"dfud  | {visible(line.decode())}")
            return await process.wait()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


if __name__ == "__main__":
    sys.exit(main())
