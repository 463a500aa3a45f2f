"""A process that leads when it can, and then leaves traces: in the database, and in a file beside it.

    python -m tests.plugins.postgres.leader DIRECTORY SOCKET [late]

Each lead is a turn with a number of its own. Everything that is done in it names the turn: "steps" in the database, with nothing that
compares them with what is stored, and lines in the file `effects`, as a call of another service would be. late: it leaves no steps,
and finds out that its session was ended no sooner than it has to.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import trio
from dfud_postgres import leading
from dfud_postgres.connection import Connection
from dfud_postgres.store import PostgresStore

from dfud.api import Bus, ConflictError, PutDocument, StoreError
from tests.plugins.postgres.server import config_for

AT_ONCE = 8
PAUSE_S = 0.002
LATE_CHECK_S, LATE_ANSWER_S = 1.5, 1.0  # together what they are without


async def _turn(store: PostgresStore) -> int:
    """Take the next number."""
    while True:
        number = len(await store.documents("turns", limit=1_000_000)) + 1
        with suppress(ConflictError):
            await store.commit([PutDocument("turns", f"{number:06}", str(os.getpid()).encode(), create=True)])
            return number


async def _step(store: PostgresStore, turn: int, name: str) -> None:
    number = 0
    while True:
        number += 1
        with suppress(StoreError):
            await store.commit([PutDocument("steps", f"{turn:06} {name} {number:06}", b"")])


async def _affect(file: int, turn: int) -> None:
    while True:
        os.write(file, f"{turn}\n".encode())
        await trio.sleep(PAUSE_S)


async def _never(connection: Connection) -> None:
    await trio.sleep_forever()


def _be_late() -> None:
    assert LATE_CHECK_S + LATE_ANSWER_S == leading.CHECK_S + leading.ANSWER_S
    leading.CHECK_S, leading.ANSWER_S = LATE_CHECK_S, LATE_ANSWER_S
    leading.ended = _never


async def _main(directory: Path, socket: str, late: bool) -> None:
    if late:
        _be_late()
    store = PostgresStore(config_for(directory, socket))
    file = os.open(directory / "effects", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        print("opened", flush=True)
        while True:
            with suppress(StoreError):
                async with store.lead("w"):
                    turn = await _turn(store)
                    async with trio.open_nursery() as working:
                        working.start_soon(_affect, file, turn)
                        for number in range(0 if late else AT_ONCE):
                            working.start_soon(_step, store, turn, str(number))


if __name__ == "__main__":
    trio.run(_main, Path(sys.argv[1]), sys.argv[2], "late" in sys.argv[3:])
