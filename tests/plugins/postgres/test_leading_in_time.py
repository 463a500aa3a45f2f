"""How long leads take, on a clock of the test's and a server that answers as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from dfud_postgres.connection import Connection, Result
from dfud_postgres.errors import DatabaseError, Lost
from dfud_postgres.leading import ANSWER_S, CHECK_S, LOOK_S, Leading
from dfud_postgres.wire import Query
from trio.testing import MockClock

WAITED_S = CHECK_S + ANSWER_S


class Server:
    """Gives every lock to whoever asks. rows: of the table `lead`; locked: they are."""

    def __init__(self) -> None:
        self.identity = "first"
        self.rows: dict[str, tuple[str, str, str]] = {}
        self.hangs = False
        self.locked = False
        self.sessions: list[Session] = []

    async def open(self) -> Connection:
        made = Session(self)
        self.sessions.append(made)
        return made

    def end_sessions(self) -> None:
        for session in self.sessions:
            session.ended.set()


class Session(Connection):
    def __init__(self, server: Server) -> None:
        self.server = server
        self.broken = False
        self.ended = trio.Event()

    def close(self) -> None:
        self.broken = True

    async def wait_for_input(self) -> None:
        await self.ended.wait()
        self.close()
        raise Lost("the server has ended the session")

    async def run(self, *statements: tuple[Query, Sequence[Any]]) -> list[Result]:
        await trio.lowlevel.checkpoint()
        if self.ended.is_set() or self.broken:
            self.close()
            raise Lost("the session is over")
        if self.server.hangs:
            await trio.sleep_forever()
        return [Result(self._rows(query.text, values), 1) for query, values in statements]

    def _rows(self, text: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        rows = self.server.rows
        if "pg_try_advisory_lock" in text:
            return [(True, self.server.identity)]
        if text.startswith("SELECT token"):
            if self.server.locked:
                raise DatabaseError("55P03", "could not obtain lock")
            return [rows[values[0]]] if values[0] in rows else []
        if text.startswith("INSERT INTO lead"):
            rows[values[0]] = values[1], values[2], values[3]
        if text.startswith("UPDATE lead") and rows.get(values[0], ("",))[0] == values[1]:
            rows[values[0]] = "", *rows[values[0]][1:]
        return [(1,)]


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Leading]:
    leading = Leading(server.open, "me")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leading.run)
        await trio.testing.wait_all_tasks_blocked()
        yield leading
        nursery.cancel_scope.cancel()


async def test_whoever_asks_never_waits_for_whoever_looks_whether_the_session_lives(autojump_clock: MockClock) -> None:
    server, took_s = Server(), []
    async with running(server) as leading:

        async def lead(name: str) -> None:
            for _ in range(5):
                began_s = trio.current_time()
                async with leading.lead(name):
                    took_s.append(trio.current_time() - began_s)
                    await trio.sleep(CHECK_S * 0.3)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(lead, f"work {number}")
    assert took_s == [0.0] * 40


async def test_a_lead_ends_when_the_session_does_and_within_its_bound_when_nobody_answers(autojump_clock: MockClock) -> None:
    server = Server()
    async with running(server) as leading:
        for silent, latest_s in ((False, 0.0), (True, WAITED_S)):
            async with leading.lead("w"):
                await trio.sleep(10)
                ended_s = trio.current_time()
                server.hangs = silent
                if not silent:
                    server.end_sessions()
                await trio.sleep_forever()
            assert trio.current_time() - ended_s <= latest_s + 0.001
            assert leading.names == []
            server.hangs = False


@pytest.mark.parametrize(
    ("row", "waited_s"),
    [
        (None, 0.0),
        (("token", "another", "before"), WAITED_S),
        (("", "another", "before"), 0.0),  # it has left
        (("token", "me", "before"), 0.0),  # it knows
        (("token", "another", "first"), 0.0),  # this server has ended its session
    ],
)
async def test_whoever_leads_on_another_server_waits_for_who_led_before(
    autojump_clock: MockClock, row: tuple[str, str, str] | None, waited_s: float
) -> None:
    server = Server()
    if row is not None:
        server.rows["w"] = row
    async with running(server) as leading:
        for further_s in (waited_s, 0.0):  # the server is known by then
            began_s = trio.current_time()
            async with leading.lead("w"):
                assert trio.current_time() - began_s == pytest.approx(further_s)
            assert server.rows["w"] == ("", "me", "first")
            if row is not None:
                server.rows["w"] = row


async def test_a_lead_is_not_taken_while_a_transaction_of_the_one_before_is_under_way(autojump_clock: MockClock) -> None:
    server = Server()
    server.locked = True
    server.rows["w"] = "token", "another", "first"
    async with running(server) as leading, trio.open_nursery() as nursery:

        async def done() -> None:
            await trio.sleep(10 * LOOK_S + 0.1)
            assert server.rows["w"][0] == "token", "the one before still stores what it has begun"
            server.locked = False

        nursery.start_soon(done)
        async with leading.lead("w"):
            assert trio.current_time() >= 10 * LOOK_S
