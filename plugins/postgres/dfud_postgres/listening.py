"""What other processes changed: a connection that listens, and says Missed whenever it may have lost something.

PostgreSQL delivers a notification to every session that listens when the commit is done, in the order of the commits, and drops
none while the session lives. So only a session that was lost can have missed any: with each new one everything is forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from dfud.api import Bus, Missed
from dfud_postgres.connection import Connection
from dfud_postgres.errors import DatabaseError, Lost
from dfud_postgres.notices import CHANNEL, read
from dfud_postgres.wire import Query

log = logging.getLogger("dfud.store")
BEAT_S = 10.0  # a session that is dead without saying so is found out within this and statement_s
RETRY_S = 0.5
_LISTEN, _ALIVE = Query(f"LISTEN {CHANNEL}"), Query("SELECT 1")


class Listener:
    """open_one: makes a connection, the first within patience_s; origin: this process, whose own notifications are passed over."""

    def __init__(self, open_one: Callable[[], Awaitable[Connection]], origin: str, patience_s: float) -> None:
        self._open_one = open_one
        self._origin = origin
        self._patience_s = patience_s
        self.heard = 0
        self.missed = 0

    async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; report started once the first session listens. Raises Lost if that cannot be had."""
        started = away = False
        deadline_s = trio.current_time() + self._patience_s
        while True:
            connection: Connection | None = None
            try:
                connection = await self._open_one()
                await connection.run((_LISTEN, ()))
                if started:
                    away = False
                    log.info("changes of other processes are heard again")
                    self.missed += 1
                    bus.publish(Missed())
                else:
                    started = True
                    task_status.started()
                await self._listen(connection, bus)
            except (Lost, DatabaseError) as error:
                if not started and trio.current_time() >= deadline_s:
                    raise
                if not away:  # once, however long it lasts
                    away = True
                    log.warning("changes of other processes are not heard", extra={"error": str(error)})
                # What is remembered goes on being served, as old as [cluster] remembered_s lets it become; the rest has no database.
                await trio.sleep(RETRY_S)
            finally:
                if connection is not None:
                    connection.close()

    async def _listen(self, connection: Connection, bus: Bus) -> None:
        while True:
            for payload in connection.notifications():
                origin, events = read(payload)
                if origin == self._origin:
                    continue
                self.heard += len(events)
                for event in events:
                    bus.publish(event)
            with trio.move_on_after(BEAT_S) as waited:
                await connection.wait_for_input()
            if waited.cancelled_caught:
                await connection.run((_ALIVE, ()))
