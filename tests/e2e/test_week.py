"""A week in the life of one board: versions of both kinds come, good ones and bad ones, the power goes, the Wi-Fi goes. At the end
good versions run, nothing is lost, and dfud says what the board says.

An hour is a step: what happens in it takes its real seconds, and what nothing happens in is left out.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from devicefw.sim.board import POWER_ON, Board
from dfud.board.look import look_untrusted
from tests.board.support import micropython
from tests.e2e.boards import BROKEN, board_bin, program
from tests.e2e.fleet import APP, Fleet, fleet
from tests.real_parts import require

HOURS = 7 * 24
SETTLED_S = 240.0
# Counts its starts in the file system, as what a user's program stores there.
KEEPS = """import asyncio
import dfu


async def main():
    try:
        with open("/kept.txt") as file:
            count = int(file.read())
    except (OSError, ValueError):
        count = 0
    with open("/kept.new", "w") as file:
        file.write(str(count + 1))
    import os

    os.rename("/kept.new", "/kept.txt")
    print("app: {version} start", count + 1)
    await asyncio.sleep_ms(20)
    dfu.confirm()
    while True:
        await asyncio.sleep(1)
"""
BAD_SYSTEM = "import network\ndel network.WLAN\n"


class Air:
    """The Wi-Fi between board and dfud: TCP, until it is lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lost = False
        self._connections: set[trio.CancelScope] = set()

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(int(listeners[0].socket.getsockname()[1]))
        await trio.serve_listeners(self._serve, listeners)

    def lost(self, lost: bool) -> None:
        self._lost = lost
        for scope in list(self._connections) if lost else ():
            scope.cancel()

    async def _serve(self, client: trio.SocketStream) -> None:
        async with client:
            if self._lost:
                return
            with trio.CancelScope() as scope:
                self._connections.add(scope)
                try:
                    async with await trio.open_tcp_stream("127.0.0.1", self._port) as server, trio.open_nursery() as nursery:
                        nursery.start_soon(self._pass, client, server, scope)
                        await self._pass(server, client, scope)
                except OSError:
                    pass
                finally:
                    self._connections.discard(scope)

    async def _pass(self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(4096):
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


class Week:
    """What happens, hour by hour, as a seed says."""

    def __init__(self, f: Fleet, folder: Path, air: Air, lamp: Board, seed: int) -> None:
        self.fleet, self.folder, self.air, self.lamp = f, folder, air, lamp
        self.random = random.Random(seed)
        self.made = 0
        self.counts = {"power cuts": 0, "cuts in flash": 0, "Wi-Fi lost": 0, "good": 0, "bad": 0}

    async def publish(self, kind: str, *, good: bool) -> str:
        """Publish the next version and have the board want it, beside the other kind's last."""
        self.made += 1
        self.counts["good" if good else "bad"] += 1
        version = f"{kind}-{self.made}{'' if good else '-bad'}"
        about = {"version": version, "hardware": "esp32c3"}
        if kind == "app":
            text = KEEPS if good else BROKEN[self.random.choice(["raises", "import", "hangs", "unconfirmed", "exits"])][0]
            data = program(self.folder / version, text, version, version)
            about["kind"] = "app"
        else:
            data = micropython(version, "" if good else BAD_SYSTEM)
        await self.fleet.request("POST", f"/api/dfu/v1/apps/{APP}/firmware", params=about, content=data)
        spec = (await self.fleet.request("GET", f"/api/registry/v1alpha1/apps/{APP}/devices/lamp1")).json()["spec"]
        wish = {key: said for key, said in spec.get("firmware", {}).items() if key in ("version", "app")}
        wish["app" if kind == "app" else "version"] = version
        await self.fleet.request("POST", f"/api/dfu/v1/apps/{APP}/update", json={"device": "lamp1", "firmware": wish})
        return version

    async def hour(self) -> None:
        chance = self.random.random
        if chance() < 0.2:
            await self.publish("app" if chance() < 0.7 else "system", good=chance() < 0.55)
        if chance() < 0.15:
            # The next start ends in the middle of an operation of its flash, if it does so many.
            self.counts["cuts in flash"] += 1
            self.lamp.flash.cut_how = self.random.choice(["before", "half"])
            self.lamp.flash.cut_at = self.lamp.flash.operations + self.random.randrange(1, 60)
            self.lamp.reset(POWER_ON)
        if chance() < 0.25:
            self.counts["Wi-Fi lost"] += 1
            self.air.lost(True)
        await trio.sleep(chance() * 2)
        if chance() < 0.3:
            self.counts["power cuts"] += 1
            self.lamp.reset(POWER_ON)
        if chance() < 0.7:
            self.air.lost(False)


async def live(tmp_path: Path, hours: int, seed: int) -> None:
    require("micropython")
    require("riscv-gcc")
    # The packages of a week are made in minutes.
    async with fleet(tmp_path, controller="packages_per_hour = 168") as f:
        secret = await f.add_device("lamp1")
        air = Air(f.daemon.ports["http"])
        port = await f.nursery.start(air.run)
        program(tmp_path / "first", KEEPS, "first")
        (tmp_path / "wifi").write_text("correct horse\n")
        wifi = ("--wifi", "attic", "--wifi-password-file", str(tmp_path / "wifi"), "--app-version", "first")
        content = board_bin(tmp_path, f"http://127.0.0.1:{port}", tmp_path / "first", *wifi, secret=secret)
        before = look_untrusted(content)
        lamp = Board(tmp_path / "board", flash=content)
        f.boards.append(lamp)
        f.nursery.start_soon(lamp.run)
        week = Week(f, tmp_path, air, lamp, seed)
        for _ in range(hours):
            await week.hour()
        air.lost(False)
        app = await week.publish("app", good=True)
        system = await week.publish("system", good=True)
        found: dict[str, object] = {}
        with trio.move_on_after(SETTLED_S):
            while not settled(found := await f.status("lamp1"), system, app):
                await trio.sleep(0.2)
        print(f"seed {seed}: {hours} hours, {week.counts}, {len(lamp.boots)} starts")
        assert settled(found, system, app), f"seed {seed}: {found}\n" + "\n".join(lamp.console[-60:])
        after = look_untrusted(lamp.flash.read(0, lamp.flash.size))
        assert after.current is not None and after.bank is not None
        assert (after.slots[after.current].version, after.banks[after.bank].version) == (system, app), "the board says what dfud says"
        assert (after.states[-1].phase, after.app_states[-1].phase) == ("confirmed", "confirmed")
        assert [s.told for s in after.spaces if s.label == "vfs" and "littlefs:" not in s.told] == []
        assert {path: size for path, size in after.files.items() if path in before.files} == before.files, "nothing is lost"
        kept = int(next(line for line in reversed(lamp.console) if line.startswith(f"app: {app} start")).split()[-1])
        assert kept > 1, "what the application stored is there after every update"
        # What ended in dfud ended for a reason, and nothing of it was an error of dfud's own.
        assert [line for line in f.daemon.lines if line["level"] in ("error", "critical")] == []
        states = await f.history("lamp1")
        assert states[-1] == "done" and states.count("done") >= 2


def settled(found: dict[str, object], system: str, app: str) -> bool:
    said = found.get("app")
    conditions = found.get("conditions")
    if found.get("current") != system or not isinstance(said, dict) or said["current"] != app or not isinstance(conditions, list):
        return False
    return any(one["type"] == "InSync" and one["status"] == "True" for one in conditions)


@pytest.mark.parametrize("seed", [1])
async def test_some_hours_of_a_week(tmp_path: Path, seed: int) -> None:
    await live(tmp_path, 12, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12])
async def test_a_week(tmp_path: Path, seed: int) -> None:
    await live(tmp_path, HOURS, seed)
