"""A store that several processes share with one fault is caught by StoreConformance: each class here is postgres with one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from dfud_postgres.store import PostgresStore

from dfud.api import Bus, Change, ExpectDevice, PutActual, PutDocument, Store
from dfud.testing.store import StoreConformance
from tests.plugins.postgres.server import Server, config_for
from tests.testing.caught import catches


class Deaf(PostgresStore):
    """It drops what other processes have committed and told, and does not know that it has missed it."""

    async def run(self, bus: Bus, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        await super().run(Bus(), task_status=task_status)


class LosesTheOthers(PostgresStore):
    """It stores its step whatever another process has stored meanwhile."""

    async def commit(self, changes: Sequence[Change]) -> None:
        await super().commit([change for change in changes if not isinstance(change, ExpectDevice)])


class LeadsAlways(PostgresStore):
    """Every process leads."""

    lead = Store.lead


class TellsNobody(PostgresStore):
    """What is to be told is left out of what is committed."""

    async def commit(self, changes: Sequence[Change]) -> None:
        quiet = [
            PutDocument(c.collection, c.key, c.value, c.create, c.expect) if isinstance(c, PutDocument) else c
            for c in changes
        ]
        await super().commit([PutActual(c.actual) if isinstance(c, PutActual) else c for c in quiet])


SHARED = [
    (Deaf, "test_what_one_process_changes_the_other_hears_and_reads"),
    (Deaf, "test_what_is_told_reaches_the_others_and_nobody_else"),
    (LosesTheOthers, "test_of_two_processes_one_stores_its_step"),
    (LeadsAlways, "test_one_leads_and_another_takes_over"),
    (TellsNobody, "test_what_one_process_changes_the_other_hears_and_reads"),
]


class LosesTheOthersConformance(StoreConformance):
    """Found by its name in the programs that the kit runs."""

    def new_store(self, directory: Path) -> Store:
        return LosesTheOthers(config_for(directory))


async def test_a_fault_between_two_real_processes_is_caught(postgres: Server, tmp_path: Path) -> None:
    assert await catches(LosesTheOthersConformance().test_two_processes_that_write_at_once_lose_nothing, tmp_path)


@pytest.mark.parametrize(("kind", "test"), SHARED, ids=lambda v: getattr(v, "__name__", v))
async def test_a_fault_between_two_processes_is_caught(
    postgres: Server, kind: type[PostgresStore], test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfud.testing.store_shared.LATEST_S", 5.0)

    class Conformance(StoreConformance):
        def new_store(self, directory: Path) -> Store:
            return kind(config_for(directory))

    assert await catches(getattr(Conformance(), test), tmp_path / "broken")
