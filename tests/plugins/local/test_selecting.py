"""Devices are found by the index of their labels, in the order of their names, whatever the selector says."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from dfud_local import selecting
from dfud_local.store import LocalStore

from dfud.api import App, Bus, Device, Metadata, PutApp, PutDevice, Selector, parse_selector_untrusted

FEW, MANY = 300, 3000


def labels_of(number: int) -> dict[str, str]:
    """Return a device's labels: `group` and `of` have all, `rare` every hundredth, `serial` is one's own."""
    found = {"group": f"g{number % 3}", "of": "all", "serial": str(number)}
    return found | ({"rare": str(number % 7)} if number % 100 == 0 else {})


@asynccontextmanager
async def fleet(path: Path, size: int) -> AsyncIterator[LocalStore]:
    store = LocalStore(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, Bus())
        await store.commit([PutApp(App(Metadata("a"))), PutApp(App(Metadata("b")))])
        devices = [PutDevice(Device(Metadata(f"d{n:05}", "a", labels=labels_of(n)))) for n in range(size)]
        await store.commit([*devices, PutDevice(Device(Metadata("d00000", "b", labels=labels_of(0) | {"only": "b"})))])
        yield store
        nursery.cancel_scope.cancel()


@contextmanager
def counted(path: Path) -> Iterator[tuple[sqlite3.Connection, list[int]]]:
    """Yield a connection and, in a list, how many steps its statements have taken."""
    steps = [0]

    def step() -> int:
        steps[0] += 1
        return 0

    database = sqlite3.connect(path / "dfud.sqlite3")
    database.set_progress_handler(step, 1)
    yield database, steps
    database.close()


def cost(path: Path, selector: str) -> dict[str, int]:
    """Return how many steps it takes to list the first devices of a selector, and to count them."""
    wanted = parse_selector_untrusted(selector)
    found = {}
    with counted(path) as (database, steps):

        def number(query: str, values: tuple[object, ...]) -> int:
            return int(database.execute(query, values).fetchone()[0])

        for what in ("page", "count"):
            steps[0] = 0
            drive = selecting.drive_of("a", wanted, number)
            if what == "page":
                query, values = selecting.page_of("d.body, a.body", "a", wanted, drive, after="", bad="[]", limit=20)
            else:
                query, values = selecting.count_of("a", wanted, drive)
            database.execute(query, values).fetchall()
            found[what] = steps[0]
    return found


SELECTORS = [
    "nobody=has",
    "nobody",
    "nobody in (a,b)",
    "group=g7",
    "group=g1,nobody",
    "group in (g0,g1),serial=x",
    "of,group!=g1,nobody=x",
    "serial=7",
    "serial in (7,8)",
    "of=all,serial=7,!nobody",
    "group notin (g1),serial in (6)",
]


async def test_what_few_devices_have_costs_the_same_in_a_small_fleet_and_in_a_large_one(tmp_path: Path) -> None:
    costs: dict[int, list[dict[str, int]]] = {}
    for size in (FEW, MANY):
        async with fleet(tmp_path / str(size), size):
            costs[size] = [cost(tmp_path / str(size), selector) for selector in SELECTORS]
    for selector, small, large in zip(SELECTORS, costs[FEW], costs[MANY], strict=True):
        for what in small:
            # Of a term that many devices have, some are counted: a few steps for each row of the index, no record.
            assert large[what] <= 1.2 * small[what] + 2000, f"{selector}, {what}: {small[what]} steps -> {large[what]}"
            if "of" not in selector and "group" not in selector:
                assert large[what] < 600, f"{selector}, {what}: {large[what]} steps"


async def test_a_page_of_what_many_have_does_not_read_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selecting, "SORTED_MAX", 50)
    async with fleet(tmp_path, MANY) as store:
        for selector in ("of=all", "of", "group in (g0,g1)", "of,group=g1,!rare"):
            assert cost(tmp_path, selector)["page"] < 6000, selector
            devices = await store.devices("a", parse_selector_untrusted(selector), limit=20)
            assert [view.device.name for view in devices] == sorted(view.device.name for view in devices)


async def test_a_list_of_many_pages_counts_its_terms_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    drive_of = selecting.drive_of

    def counting(app: str, selector: Selector, number: selecting.Number) -> selecting.Drive:
        counted.append(app)
        return drive_of(app, selector, number)

    monkeypatch.setattr(selecting, "drive_of", counting)
    async with fleet(tmp_path, FEW) as store:
        for _ in range(2):
            found, after = [], ""
            while page := await store.wishes("a", parse_selector_untrusted("group=g1,of"), limit=20, after=after):
                found += [wish.device for wish in page]
                after = page[-1].device
            assert found == [f"d{n:05}" for n in range(FEW) if n % 3 == 1]
        assert counted == ["a", "a"], "once for each list"


async def test_what_one_term_says_is_counted_by_its_rows_alone(tmp_path: Path) -> None:
    async with fleet(tmp_path, MANY) as store:
        for text in ("!of", "of!=all", "group notin (g0,g1)", "!rare", "of", "group in (g0,g1)"):
            wanted = parse_selector_untrusted(text)
            expected = sum(wanted.matches(labels_of(n)) for n in range(MANY))
            assert await store.count("a", wanted) == expected
            with counted(tmp_path) as (database, steps):
                query, values = selecting.count_of("a", wanted, selecting.Drive(None))
                assert database.execute(query, values).fetchone()[0] == expected
                # A dozen for each row that is counted, where a look at the labels of each device takes three dozen.
                assert steps[0] < 14 * MANY, f"{text}: {steps[0]} steps for {MANY} devices"


@pytest.mark.parametrize("sorted_max", [20_000, 5])
async def test_whatever_the_selector_the_same_devices_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sorted_max: int
) -> None:
    monkeypatch.setattr(selecting, "SORTED_MAX", sorted_max)
    random = Random(3)
    terms = ["group=g1", "group!=g1", "group in (g0,g2)", "group notin (g0)", "rare", "!rare", "rare=0", "rare in (0,1,2)"]
    terms += ["of", "!of", "of=all", "serial=7", "serial in (1,2,3,300)", "nobody", "!nobody", "nobody=x", "only", "only=b"]
    async with fleet(tmp_path, FEW) as store:
        for _ in range(60):
            text = ",".join(random.sample(terms, random.randint(0, 3)))
            selector: Selector = parse_selector_untrusted(text)
            expected = [f"d{n:05}" for n in range(FEW) if selector.matches(labels_of(n))]
            assert await store.count("a", selector) == len(expected), text
            size, found, after = random.choice((7, 50, 400)), [], ""
            while page := await store.devices("a", selector, limit=size, after=after):
                found += [view.device.name for view in page]
                after = found[-1]
            assert found == expected, text
            wishes = await store.wishes("a", selector, limit=size, after="d00150")
            assert [wish.device for wish in wishes] == [name for name in expected if name > "d00150"][:size], text
            offset = random.randrange(40)
            paged = await store.devices("a", selector, limit=size, offset=offset)
            assert [view.device.name for view in paged] == expected[offset : offset + size], text
