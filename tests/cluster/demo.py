"""`make demo-cluster`: a fleet behind load balancers, three dfud, PostgreSQL and S3, and an update during which two of them fail.

Everything is the real thing and on the loopback: PostgreSQL, an S3 service, nginx and HAProxy with the configurations of
docs/cluster.md, boards that boot through the emulated boot stage and run the real agent on real MicroPython. Ends with 0 when every
board runs the new version, with 1 when not, with 2 when a part is missing, with 130 on Ctrl-C.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import trio

from devicefw.sim.board import Board
from devicefw.sim.demo import Dfuctl, console, say
from devicefw.sim.firmware import build, program
from devicefw.sim.processes import until_signalled
from tests.cluster.balancer import KINDS, Balancer
from tests.cluster.whole import Whole, running
from tests.plugins.postgres.cluster import APP
from tests.plugins.postgres.server import Server
from tests.plugins.postgres.server import running as server_running
from tests.plugins.s3.gateway import Gateway
from tests.real_parts import find

STARTING_AT_ONCE = 4  # boards whose boot stage runs at one time: each is a chip that is emulated
OLD, NEW = "1.0", "1.1"
LEASED = "rollouts"  # the work whose leader is killed


@click.command()
@click.option("--boards", default=50, show_default=True, type=click.IntRange(2, 500), help="How many boards.")
@click.option("--balancer", "kinds", multiple=True, type=click.Choice(KINDS), help="In front of dfud. Default: all that are here.")
@click.option("--minutes", default=20, show_default=True, type=click.IntRange(1, 240), help="After which to give up.")
def main(boards: int, kinds: tuple[str, ...], minutes: int) -> None:
    """Update a fleet of boards through several dfud, kill one of them, restart the database, and see everybody arrive."""
    chosen = kinds or tuple(kind for kind in KINDS if find(kind))
    missing = [part for part in ("postgres", "versitygw", "micropython", "riscv-gcc", *chosen) if find(part) is None]
    if missing or not chosen:
        click.echo(f"missing: {', '.join(missing) or ' or '.join(KINDS)} (`make setup` installs it)", err=True)
        sys.exit(2)
    ended: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dfud-demo-") as name, parts(Path(name)) as (server, gateway):

        async def whole() -> None:
            with trio.move_on_after(minutes * 60):
                await Demo(Path(name), boards, chosen, server, gateway).run()
                ended.append("whole")
                return
            ended.append("late")

        try:
            trio.run(until_signalled, whole)
        except SystemExit as error:
            click.echo(f"FAILED: {error.code}", err=True)
            sys.exit(1)
    if ended == ["late"]:
        click.echo(f"FAILED: not over after {minutes} minutes", err=True)
        sys.exit(1)
    if not ended:
        click.echo("interrupted; everything is stopped", err=True)
        sys.exit(130)


@contextmanager
def parts(directory: Path) -> Iterator[tuple[Server, Gateway]]:
    """Start PostgreSQL, with everything on disk that it promises, and the S3 service; end them with the context."""
    with ExitStack() as stack:
        gateway = Gateway(directory / "gateway")
        stack.callback(gateway.stop)
        gateway.start()
        yield stack.enter_context(server_running("fsync = on\nfull_page_writes = on\nautovacuum = on")), gateway


class Demo:
    """The cluster, its balancers and its boards, in a directory of their own."""

    def __init__(self, directory: Path, number: int, kinds: Sequence[str], server: Server, gateway: Gateway) -> None:
        self._directory = directory
        self._number = number
        self._server = server
        self._cluster = Whole(directory / "cluster", [server], gateway)
        self._balancers = [Balancer(kind, directory / kind) for kind in kinds]
        self._dfuctl = Dfuctl(directory)
        self._boards: dict[str, Board] = {}
        self._began = time.monotonic()
        self._shown = ""

    async def run(self) -> None:
        names = " and ".join(balancer.kind for balancer in self._balancers)
        say(f"PostgreSQL, an S3 service, three dfud, {names} in front of them, all on the loopback")
        async with running(self._cluster, *self._balancers) as cluster, trio.open_nursery() as nursery:
            for number, daemon in enumerate(cluster.daemons, 1):
                console.print(f"dfud {number}: users {daemon.urls['registry']}, devices {daemon.urls['http']}")
            for balancer in self._balancers:
                console.print(f"{balancer.kind}: devices {balancer.url}")
            leader = await self._leader()
            # Users are not balanced here: they talk to one that lives on.
            user = cluster.daemons[(leader + 1) % len(cluster.daemons)]
            await self._prepare(user.urls["registry"], user.token)
            self._user = (leader + 1) % len(cluster.daemons)
            await self._boot(nursery)
            await self._update(leader)
            await self._arrived()
            nursery.cancel_scope.cancel()
        say(
            f"Done: {self._number} boards run {NEW}. One dfud was killed and came back, the database was restarted, "
            f"in {time.monotonic() - self._began:.0f} s."
        )

    async def _prepare(self, url: str, token: str) -> None:
        dfuctl = self._dfuctl
        await dfuctl("login", url, "--token", token, secret=True)
        await dfuctl("app", "create", APP, "--unsigned")
        await dfuctl("context", "--app", APP)
        for version in (OLD, NEW):
            path = self._directory / f"lamp-{version}.bin"
            path.write_bytes(build(program("good", version), version))
            await dfuctl("firmware", "publish", str(path), "--version", version, "--hardware", "esp32c3", show=False)
        await dfuctl("firmware", "list")

    async def _boot(self, nursery: trio.Nursery) -> None:
        say(f"{self._number} boards, every one a boot stage on an emulated chip and the real agent on real MicroPython")
        image = (self._directory / f"lamp-{OLD}.bin").read_bytes()
        async with self._cluster.user(self._user) as client:
            for number in range(self._number):
                name = f"lamp{number:02}"
                body = {"metadata": {"name": name, "application": APP}}
                (await client.post(f"/api/registry/v1alpha1/apps/{APP}/devices", json=body)).raise_for_status()
                answer = await client.post(f"/api/dfu/v1/apps/{APP}/secret/{name}")
                settings = {
                    "url": self._balancers[number % len(self._balancers)].url,
                    "app": APP,
                    "device": name,
                    "secret": answer.json()["secret"],
                    "wait_s": 20,
                    "confirm_s": 30,
                    "watchdog_s": 20,
                    "backoff_ms": 1000,
                    "update_backoff_ms": 1000,
                }
                self._boards[name] = Board(self._directory / name, settings, image=image)
                nursery.start_soon(self._boards[name].run)
                await _until(self._few_are_starting)
                if (number + 1) % 10 == 0:
                    console.print(f"{number + 1} of {self._number} boards are switched on")
        await self._watch(lambda versions: versions == {OLD: self._number})

    async def _few_are_starting(self) -> bool:
        return sum(not board.version_line() for board in self._boards.values()) < STARTING_AT_ONCE

    async def _leader(self) -> int:
        """Return which process leads the rollouts."""
        while True:
            for number in sorted(self._cluster.alive):
                lines = self._cluster.daemons[number].lines
                if any(line.get("event") == "leads" and line.get("work") == LEASED for line in lines):
                    return number
            await trio.sleep(0.05)

    async def _update(self, leader: int) -> None:
        some = max(1, self._number // 5)
        say(f"{NEW} for {some} of them, then for everybody")
        waves = [{"count": some, "soakS": 0, "approval": True}, {"percent": 100, "soakS": 0}]
        path = self._directory / "waves.json"
        path.write_text(json.dumps({"waves": waves}))
        await self._dfuctl("rollout", "create", "good", NEW, "--spec", str(path))
        await self._watch(lambda versions: versions[NEW] >= 1)
        say(f"kill -9 of dfud {leader + 1}, which leads the rollout")
        killed = time.monotonic()
        await self._cluster.kill(leader)
        follower = await self._leader()
        console.print(f"dfud {follower + 1} leads it, {time.monotonic() - killed:.1f} s later")
        await self._watch(lambda versions: versions[NEW] >= some)
        await self._cluster.start(leader)
        console.print(f"dfud {leader + 1} is started again")
        await self._comes_to("wave-waiting-for-approval")
        await self._dfuctl("rollout", "approve", "good")
        await self._watch(lambda versions: versions[NEW] > some)
        say("PostgreSQL is restarted, while the others fetch")
        await trio.to_thread.run_sync(self._server.stop)
        console.print("it is down")
        await trio.to_thread.run_sync(self._server.start)
        console.print("it is up")
        await self._watch(lambda versions: versions == {NEW: self._number})

    async def _arrived(self) -> None:
        """Everybody is there: by what each process says, and by what the boards say."""
        await self._comes_to("finished")
        await self._dfuctl("rollout", "show", "good")
        await self._dfuctl("fleet")
        for number in sorted(self._cluster.alive):
            found = await self._versions(number)
            if found != {NEW: self._number}:
                raise SystemExit(f"dfud {number + 1} says that the boards run {found}, expected {self._number} times {NEW}")
        said = Counter(board.version_line().rpartition(" ")[2] for board in self._boards.values())
        if said != {NEW: self._number}:
            raise SystemExit(f"the boards run {dict(said)}, expected {self._number} times {NEW}")

    async def _comes_to(self, state: str) -> None:
        path = f"/api/dfu/v1/apps/{APP}/rollouts/good"
        while (await self._cluster.ask("GET", path, self._user)).json()["status"]["state"] != state:
            await trio.sleep(0.2)

    async def _watch(self, enough: Callable[[Counter[str]], bool]) -> None:
        """Show how many run what, whenever that changes, until it is enough."""
        while True:
            found = await self._versions(self._user)
            shown = "   ".join(f"{version}: {number}" for version, number in sorted(found.items()))
            if shown != self._shown:
                console.print(f"{time.monotonic() - self._began:6.1f} s   {shown}")
                self._shown = shown
            if enough(found):
                return
            await trio.sleep(0.5)

    async def _versions(self, number: int) -> Counter[str]:
        while True:
            try:
                async with self._cluster.user(number) as client:
                    answer = await client.get(f"/api/dfu/v1/apps/{APP}/fleet", params={"hours": 1})
                if answer.is_success:
                    body: dict[str, Any] = answer.json()
                    return Counter(body["versions"])
            except httpx.TransportError:
                pass
            await trio.sleep(0.2)


async def _until(ask: Callable[[], Awaitable[bool]]) -> None:
    while not await ask():
        await trio.sleep(0.2)


if __name__ == "__main__":
    main()
