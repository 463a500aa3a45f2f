"""One connection to PostgreSQL under trio.

It drives libpq's non-blocking interface, as `psycopg.pq` wraps it, by trio's wait_readable() and wait_writable(). That interface
is documented, so nothing of psycopg's inside is relied on, and a point read costs 30 to 60 us of CPU where one through a thread
costs 150. Statements that belong together go out in one pipeline, so a batch is one round trip.

Whatever cuts a call short (cancellation, a deadline, the network) leaves the connection broken and closed: nobody has to know what
the server did with the rest. What had been sent may still be done; only the writer cares, and asks (see writer.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import trio
from psycopg import Error as DriverError
from psycopg import pq
from psycopg.pq.abc import PGconn

from dfud_postgres.config import PostgresConfig
from dfud_postgres.connecting import connect
from dfud_postgres.errors import DatabaseError, Lost
from dfud_postgres.wire import Query, decode

log = logging.getLogger("dfud.postgres")
Row = tuple[Any, ...]
PREPARED_MAX = 200  # statements that one connection keeps; others are parsed each time
SILENT_S = 6
PROBES = 3
GRACE_S = 2.0  # beyond statement_s, for the server to say so itself

BEGIN, COMMIT, ROLLBACK = Query("BEGIN"), Query("COMMIT"), Query("ROLLBACK")


class Result:
    """rows: of a SELECT or RETURNING; count: how many were changed."""

    __slots__ = ("count", "rows")

    def __init__(self, rows: list[Row], count: int) -> None:
        self.rows = rows
        self.count = count

    @property
    def row(self) -> Row | None:
        return self.rows[0] if self.rows else None


class Connection:
    """Used by one task at a time. `broken`: it is closed, make another."""

    def __init__(self, pgconn: PGconn, statement_s: float) -> None:
        self._pg = pgconn
        self._prepared: dict[str, bytes] = {}
        self._names = 0
        self._timeout_s = statement_s + GRACE_S
        self.broken = False
        self.backend = pgconn.backend_pid

    @classmethod
    async def open(
        cls,
        config: PostgresConfig,
        name: str,
        silent_s: int = SILENT_S,
        *,
        by_key: bool = False,
        asks_often: bool = False,
    ) -> Connection:
        """Connect and log in. name: shown by pg_stat_activity. silent_s: after which the server ends the session of a client that
        is gone without a word, 4 at least. by_key: what it joins, it finds by keys. asks_often: who stands still for silent_s is
        gone, too, where the server can tell (PostgreSQL 14). Raises Lost, ConfigError.
        """
        try:
            pgconn = await connect(config, name)
            try:
                pgconn.nonblocking = 1
                made = cls(pgconn, config.statement_s)
                await made.run((Query(_settings(config, silent_s, by_key, asks_often)), ()))
            except BaseException:
                pgconn.finish()
                raise
        except OSError as error:
            raise Lost(f"PostgreSQL at {config.host}: {error}") from error
        except DatabaseError as error:
            raise Lost(f"PostgreSQL refused the session: {error}") from error
        return made

    def close(self) -> None:
        self.broken = True
        self._pg.finish()

    async def run(self, *statements: tuple[Query, Sequence[Any]]) -> list[Result]:
        """Send all statements in one pipeline and return their results; the first that is refused ends the rest.

        Raises DatabaseError, with the connection whole; Lost, with it broken; what Query.encode() raises, before anything is sent.
        """
        encoded = [query.encode(values) for query, values in statements]
        if self.broken:
            raise Lost("the connection is closed")
        try:
            with trio.fail_after(self._timeout_s):
                return await self._run(statements, encoded)
        except DatabaseError:
            raise
        except trio.TooSlowError:
            self.close()
            raise Lost(f"PostgreSQL has not answered within {self._timeout_s:g} s") from None
        except OSError as error:
            self.close()
            raise Lost(str(error)) from error
        except BaseException:
            self.close()
            raise

    async def _run(
        self, statements: Sequence[tuple[Query, Sequence[Any]]], encoded: list[list[bytes | None]]
    ) -> list[Result]:
        pg = self._pg
        made: dict[str, bytes] = {}
        try:
            pg.enter_pipeline_mode()
            expected: list[str] = []  # for each answer, which text it has prepared; "": it is a statement's own
            for (query, _), values in zip(statements, encoded, strict=True):
                name = self._prepared.get(query.text) or made.get(query.text)
                if name is None and not query.by_values and len(self._prepared) + len(made) < PREPARED_MAX:
                    self._names += 1
                    name = made[query.text] = b"d%d" % self._names
                    pg.send_prepare(name, query.sql, query.oids)
                    expected.append(query.text)
                if name is None:
                    pg.send_query_params(query.sql, values, query.oids, query.formats, 1)
                else:
                    pg.send_query_prepared(name, values, query.formats, 1)
                expected.append("")
            pg.pipeline_sync()
            results, error = await self._receive(expected, made)
            pg.exit_pipeline_mode()
        except DriverError as failed:
            raise OSError(str(failed).strip()) from failed
        if error is not None:
            if error.state.startswith(("57P", "08")):
                self.close()
                raise Lost(str(error))
            raise error
        return results

    async def _receive(self, expected: list[str], made: dict[str, bytes]) -> tuple[list[Result], DatabaseError | None]:
        pg = self._pg
        results: list[Result] = []
        error: DatabaseError | None = None
        await self._flush()
        for prepared in expected:
            answer = await self._next()
            while answer is None:
                answer = await self._next()
            status = answer.status
            if status in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
                if prepared:
                    self._prepared[prepared] = made[prepared]
                else:
                    results.append(_result(answer))
            elif status == pq.ExecStatus.FATAL_ERROR and error is None:
                error = _error(answer)
        while True:
            answer = await self._next()
            if answer is not None and answer.status == pq.ExecStatus.PIPELINE_SYNC:
                return results, error
            if answer is None and pg.status == pq.ConnStatus.BAD:
                raise OSError("the connection to PostgreSQL is gone")

    async def _flush(self) -> None:
        pg, socket = self._pg, self._pg.socket
        while pg.flush():
            # The server may want to be read before it reads on.
            async with trio.open_nursery() as nursery:

                async def wait(how: Any, nursery: trio.Nursery) -> None:
                    await how(socket)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(wait, trio.lowlevel.wait_readable, nursery)
                nursery.start_soon(wait, trio.lowlevel.wait_writable, nursery)
            pg.consume_input()

    async def _next(self) -> Any:
        pg = self._pg
        while pg.is_busy():
            await trio.lowlevel.wait_readable(pg.socket)
            pg.consume_input()
        return pg.get_result()

    # Notifications

    def notifications(self) -> list[bytes]:
        """Return the payloads that have come."""
        found: list[bytes] = []
        while (one := self._pg.notifies()) is not None:
            found.append(one.extra)
        return found

    async def wait_for_input(self) -> None:
        """Return when something has come. Raises Lost. Cancelling it does no harm."""
        await trio.lowlevel.wait_readable(self._pg.socket)
        try:
            self._pg.consume_input()
        except DriverError as error:
            self.close()
            raise Lost(str(error).strip()) from error


def _result(answer: Any) -> Result:
    columns = answer.nfields
    if not columns:
        return Result([], answer.command_tuples or 0)
    oids = [answer.ftype(c) for c in range(columns)]
    get = answer.get_value
    rows = [tuple(decode(oid, get(r, c)) for c, oid in enumerate(oids)) for r in range(answer.ntuples)]
    return Result(rows, len(rows))


def _error(answer: Any) -> DatabaseError:
    state = answer.error_field(pq.DiagnosticField.SQLSTATE) or b"XX000"
    message = answer.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or answer.error_message or b"no reason given"
    return DatabaseError(state.decode("ascii", "replace"), message.decode("utf-8", "replace").strip())


def _settings(config: PostgresConfig, silent_s: int, by_key: bool, asks_often: bool) -> str:
    """Settings of the session, as a statement: pgbouncer takes none at the start of a connection."""
    wanted = {
        "statement_timeout": f"{config.statement_s * 1000:.0f}",
        "lock_timeout": f"{config.statement_s * 1000:.0f}",
        # What it has locked, others wait for, as whoever leads next.
        "idle_in_transaction_session_timeout": f"{silent_s * 1000}",
        "tcp_keepalives_idle": f"{silent_s - PROBES}",
        "tcp_keepalives_interval": "1",
        "tcp_keepalives_count": f"{PROBES}",
        # What it has sent and nobody has taken keeps it from probing. A tick earlier, so that it is the same one.
        "tcp_user_timeout": f"{silent_s * 1000 - 200}",
        "default_transaction_isolation": "read committed",
        "synchronous_commit": "on",
        # A plan that was made while a table was small is kept until its statistics change. There is an index for every statement,
        # so no plan has to read a table whole; and none is worth compiling.
        "enable_seqscan": "off",
        "jit": "off",
    }
    if by_key:  # nor an index
        wanted |= {"enable_hashjoin": "off", "enable_mergejoin": "off"}
    calls = [f"set_config('{key}', '{value}', false)" for key, value in wanted.items()]
    if asks_often:
        idle = f"set_config('idle_session_timeout', '{silent_s * 1000}', false)"
        calls.append(f"CASE WHEN current_setting('server_version_num')::int >= 140000 THEN {idle} END")
    return f"SELECT {', '.join(calls)}"
