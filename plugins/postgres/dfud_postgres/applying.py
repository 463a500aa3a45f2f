"""One job's changes in their order; what stands together and goes together takes a few statements for all.

Devices that are put (registering.py), and what devices have said (batch.py), are gathered until something of another kind comes; that
is applied by itself (changes.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from dfud.api import Change, PutDevice
from dfud_postgres.batch import Batch, device_of, locked, qualifies
from dfud_postgres.changes import Changes
from dfud_postgres.connection import Connection
from dfud_postgres.limits import Limits
from dfud_postgres.registering import Put, put_devices

Encoded = tuple[Change, tuple[bytes, ...]]


class Applying:
    def __init__(self, connection: Connection, changes: Changes, limits: Limits) -> None:
        self._connection = connection
        self._changes = changes
        self._limits = limits
        self._puts: dict[tuple[str, str], Put] = {}
        self._said: list[Encoded] = []

    async def apply(self, job: Sequence[Encoded]) -> None:
        """Raises ConflictError, NotFoundError, Raced, DatabaseError, Lost; then some of it may have been done."""
        for change, bodies in job:
            if isinstance(change, PutDevice):
                key = (change.device.app, change.device.name)
                if self._said or key in self._puts:
                    await self._flush()
                self._puts[key] = change, bodies[0]
            elif qualifies(change):
                if self._puts:
                    await self._flush()
                self._said.append((change, bodies))
            else:
                await self._flush()
                await self._changes.apply(change, bodies)
        await self._flush()

    async def _flush(self) -> None:
        if self._puts:
            puts, self._puts = list(self._puts.values()), {}
            await put_devices(self._connection, self._changes.notices, puts)
        if self._said:
            said, self._said = self._said, []
            keys = sorted({key for change, _ in said if (key := device_of(change)) is not None})
            rows = (await self._connection.run(locked(keys)))[0].rows if keys else []
            batch = Batch(rows, self._limits)
            batch.take(said)
            if statements := batch.statements():
                await self._connection.run(*statements)
            self._changes.notices.merge(batch.notices)
