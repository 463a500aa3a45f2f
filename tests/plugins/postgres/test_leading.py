"""What two real processes do that lead in turn, while the database is restarted or one of them stands still."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psycopg
import pytest
import trio
from dfud_postgres.leading import SILENT_S
from dfud_postgres.store import PostgresStore
from dfud_postgres.wire import Query

from dfud.api import Bus, PutDocument
from tests.plugins.postgres.server import Server, config_for, running

LATEST_S = 120.0  # for a test to fail, not what is promised
STEPS = 30


@pytest.fixture
def own() -> Iterator[Server]:
    """A server that a test may kill, and that remembers when what was committed."""
    with running("track_commit_timestamp = on") as server:
        yield server


class Pair:
    """Two processes that lead in turn."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.database = config_for(directory, str(server.directory)).database
        self.processes: list[subprocess.Popen[str]] = []

    def ask(self, statement: str) -> list[tuple[object, ...]]:
        return self.server.run(statement, self.database)

    async def leader(self, turns: int = 0, steps: int = STEPS) -> tuple[int, int]:
        """Return the newest turn after `turns` others and whose it is, once it has left so many steps."""
        statement = (
            "SELECT key, convert_from(value, 'UTF8') FROM document t WHERE collection='turns' AND (SELECT count(*) FROM document s "
            f"WHERE s.collection='steps' AND s.key >= t.key AND s.key < t.key || '~') >= {steps} ORDER BY key DESC LIMIT 1"
        )
        with trio.fail_after(LATEST_S):
            while True:
                with suppress(psycopg.OperationalError):
                    for turn, pid in await trio.to_thread.run_sync(self.ask, statement):
                        if int(str(turn)) > turns:
                            return int(str(turn)), int(str(pid))
                await trio.sleep(0.05)

    def check_stored(self) -> None:
        """Nothing of a turn was stored once the next had begun."""
        stored = self.ask(
            "SELECT left(key, 6) FROM document WHERE collection IN ('turns', 'steps') ORDER BY pg_xact_commit_timestamp(xmin), key"
        )
        turns = [int(str(turn)) for (turn,) in stored]
        assert len(turns) > STEPS and turns == sorted(turns), "a step was stored after another process had begun to lead"

    def check_done(self) -> None:
        """Nothing of a turn was done outside of the database once the next had begun."""
        done = [int(line) for line in (self.directory / "effects").read_text().split()]
        assert done == sorted(done), "something was done outside after another process had begun to lead"


@asynccontextmanager
async def pair(server: Server, directory: Path, *options: str) -> AsyncIterator[Pair]:
    made = Pair(server, directory)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)}
    command = [sys.executable, "-m", "tests.plugins.postgres.leader", str(directory), str(server.directory), *options]
    try:
        for _ in range(2):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
            made.processes.append(process)
            assert process.stdout is not None
            assert await trio.to_thread.run_sync(process.stdout.readline) == "opened\n"
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["restarted", "killed"])
async def test_two_never_lead_at_a_time_when_the_database_is_started_anew(
    own: Server, tmp_path: Path, how: signal.Signals
) -> None:
    async with pair(own, tmp_path) as two:
        turn = 0
        for _ in range(2):
            turn, _ = await two.leader(turn)
            await trio.to_thread.run_sync(own.stop, how)
            await trio.to_thread.run_sync(own.start)
        await two.leader(turn)
    two.check_stored()
    two.check_done()


async def test_whoever_leads_on_another_server_waits_for_those_who_have_not_noticed_yet(own: Server, tmp_path: Path) -> None:
    """As where the end of the session does not come through."""
    async with pair(own, tmp_path, "late") as two:
        turn = 0
        for _ in range(2):
            turn, _ = await two.leader(turn, 0)
            await trio.to_thread.run_sync(own.stop, signal.SIGKILL)
            await trio.to_thread.run_sync(own.start)
        await two.leader(turn, 0)
    two.check_done()


async def test_who_stood_still_while_another_took_over_stores_nothing_any_more(own: Server, tmp_path: Path) -> None:
    async with pair(own, tmp_path) as two:
        turn, pid = await two.leader()
        os.kill(pid, signal.SIGSTOP)
        try:
            if own.run("SELECT 1 WHERE current_setting('server_version_num')::int < 140000"):  # it ends no idle session
                holders = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype='advisory' AND granted"
                with trio.fail_after(LATEST_S):
                    while not await trio.to_thread.run_sync(two.ask, holders):
                        await trio.sleep(0.05)
            after, other = await two.leader(turn)
            assert other != pid
        finally:
            os.kill(pid, signal.SIGCONT)
        os.kill(other, signal.SIGKILL)  # so the first one leads again, and is done with what it had under way
        await two.leader(after)
    two.check_stored()


async def test_what_a_process_has_locked_it_loses_no_later_than_its_leads(postgres: Server, tmp_path: Path) -> None:
    """Its transaction shares a lock of the lead's row, for which the next one waits."""
    store = PostgresStore(config_for(tmp_path))
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        assert store._writer is not None
        connection = await store._writer._open_one()
        try:
            names = ("idle_in_transaction_session_timeout", "tcp_user_timeout", "tcp_keepalives_idle")
            setting = "SELECT setting::bigint FROM pg_settings WHERE name="
            found = await connection.run(*((Query(f"{setting}'{name}'"), ()) for name in names))
        finally:
            connection.close()
        idle_ms, silent_ms, probed_s = (int(result.rows[0][0]) for result in found)
        assert 0 < idle_ms <= SILENT_S * 1000
        if silent_ms:  # 0: a Unix socket has none
            assert silent_ms <= SILENT_S * 1000 and probed_s < SILENT_S
        nursery.cancel_scope.cancel()


async def test_a_task_that_outlives_the_lead_that_started_it_stores(postgres: Server, tmp_path: Path) -> None:
    store = PostgresStore(config_for(tmp_path))
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        over, done = trio.Event(), trio.Event()

        async def later() -> None:
            await over.wait()
            await store.commit([PutDocument("c", "k", b"v")])
            done.set()

        with trio.fail_after(LATEST_S):
            async with store.lead("w"):
                nursery.start_soon(later)
            async with store.lead("w"):
                over.set()
                await done.wait()
        assert await store.document("c", "k") == b"v"
        nursery.cancel_scope.cancel()


async def test_what_a_lead_that_was_lost_commits_is_refused_and_its_block_ends_without_an_error(
    postgres: Server, tmp_path: Path
) -> None:
    config = config_for(tmp_path)
    store = PostgresStore(config)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        stored = False
        with trio.fail_after(LATEST_S):
            async with store.lead("w"), store.lead("other work"):
                await store.commit([PutDocument("c", "before", b"")])
                postgres.run("UPDATE lead SET token='of another' WHERE name='w'", config.database)
                await store.commit([PutDocument("c", "after", b"")])
                stored = True
            assert not stored
            assert [key for key, _ in await store.documents("c")] == ["before"]
            async with store.lead("w"):
                await store.commit([PutDocument("c", "again", b"")])
        nursery.cancel_scope.cancel()
