"""A store with one fault is caught by StoreConformance: each class here is the store of docs/stores.md with one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from dfud.api import Bus, Change, ExpectDevice, Store
from dfud.testing.store import StoreConformance
from tests.plugins.documents import blocks, module_of
from tests.testing.caught import catches

journal: Any = module_of("stores.md", "dfud_journal", blocks("stores.md", "python")[0])


class Forgets(journal.JournalStore):
    """It begins anew each time it is opened."""

    def _open(self) -> Any:
        (self._path / "journal.jsonl").unlink(missing_ok=True)
        return super()._open()


class ForgetsTheLast(journal.JournalStore):
    """It answers before it has written: the last commits of a killed process are gone."""

    _behind: tuple[bytes, ...] = ()

    def _append(self, line: bytes) -> None:
        self._behind += (line,)
        if len(self._behind) == 7:
            for one in self._behind:
                super()._append(one)
            self._behind = ()


class TakesNoTurns(journal.JournalStore):
    """Of two commits at once, the one that ends last wins."""

    async def _write(self, apply: Callable[[Any], None]) -> None:
        before: Any = self._rows
        rows = journal.Rows(before)
        apply(rows)
        await trio.to_thread.run_sync(self._append, journal._line(rows.changed))
        self._rows: Any = rows


class ExpectsNothing(journal.JournalStore):
    """It stores what was decided by what is no longer true."""

    async def commit(self, changes: Sequence[Change]) -> None:
        await super().commit([change for change in changes if not isinstance(change, ExpectDevice)])


class LetsGo(journal.JournalStore):
    """It removes an image that a writer still holds."""

    def _free(self, digests: set[str]) -> None:
        self._holds.clear()
        super()._free(digests)


class StoresHalf(journal.JournalStore):
    """A commit is a commit for each of its changes."""

    async def commit(self, changes: Sequence[Change]) -> None:
        for change in changes:
            await super().commit([change])


class HasItAlone(journal.JournalStore):
    """It does not look whether another one runs on the same directory."""

    def _lock(self) -> int:
        return int(journal.os.open(self._path / "lock", journal.os.O_CREAT | journal.os.O_RDWR))


def conformance(kind: type[Store]) -> type[StoreConformance]:
    def new_store(self: Any, directory: Path) -> Store:
        return kind(directory)  # type: ignore[call-arg]

    # Found by its name in the program that is killed.
    made = type(f"Conformance{kind.__name__}", (StoreConformance,), {"new_store": new_store, "__module__": __name__})
    globals()[made.__name__] = made
    return made


JOURNALS = {kind: conformance(kind) for kind in (journal.JournalStore, *journal.JournalStore.__subclasses__())}


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Store]:
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        yield store
        nursery.cancel_scope.cancel()


ON_A_DIRECTORY = [
    (Forgets, "test_everything_is_there_after_the_store_was_closed"),
    (Forgets, "test_a_random_walk_ends_where_the_model_does"),
    (Forgets, "test_it_is_there_after_the_store_was_opened_again"),
    (ForgetsTheLast, "test_what_was_answered_is_there_after_a_kill"),
    (LetsGo, "test_a_random_walk_ends_where_the_model_does"),
    (HasItAlone, "test_a_store_that_is_open_is_not_opened_twice"),
]
ON_A_STORE = [
    (TakesNoTurns, "test_counters_add_up_whoever_counts"),
    (TakesNoTurns, "test_a_refused_commit_does_not_harm_those_beside_it"),
    (TakesNoTurns, "test_of_two_who_have_read_the_same_one_stores_their_step"),
    (ExpectsNothing, "test_a_step_is_stored_only_while_what_it_was_decided_by_is_true"),
    (LetsGo, "test_a_blob_lives_while_its_writer_is_open"),
    (StoresHalf, "test_a_commit_is_done_whole_or_not_at_all"),
]


@pytest.mark.parametrize(("kind", "test"), ON_A_DIRECTORY, ids=lambda v: getattr(v, "__name__", v))
async def test_a_fault_over_opening_and_killing_is_caught(kind: type[Store], test: str, tmp_path: Path) -> None:
    # Where a walk by chance does not come by the fault, another one does.
    for walk in range(20 if "random" in test else 1):
        if await catches(getattr(JOURNALS[kind](), test), tmp_path / f"broken-{walk}"):
            break
    else:
        pytest.fail("it was not caught")
    assert not await catches(getattr(JOURNALS[journal.JournalStore](), test), tmp_path / "whole")


@pytest.mark.parametrize(("kind", "test"), ON_A_STORE, ids=lambda v: getattr(v, "__name__", v))
async def test_a_fault_of_one_that_runs_is_caught(kind: Callable[[Path], Store], test: str, tmp_path: Path) -> None:
    for broken in (kind, journal.JournalStore):
        with contextlib.suppress(Exception):
            async with opened(broken(tmp_path / broken.__name__)) as store:
                caught = await catches(getattr(StoreConformance(), test), store)
        assert caught == (broken is kind)
