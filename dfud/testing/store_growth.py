"""That growth has an end: what every store is held to. Part of StoreConformance."""

from __future__ import annotations

import msgspec

from dfud.api import (
    Deployment,
    HistoryEntry,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    State,
    Store,
    TrimDocuments,
)
from dfud.testing.store_values import a_deployment, a_device, an_app

NOW_S = 2_000_000.0


def _made(number: int, device: str, state: State = State.DONE, *, created_s: float) -> Deployment:
    made = a_deployment(number, state, device)
    return msgspec.structs.replace(made, number=number, created_s=created_s, updated_s=created_s)


def _entry(made: Deployment, at_s: float, code: int = 0) -> HistoryEntry:
    return HistoryEntry(made.id, made.app, made.device, at_s, made.state, made.version, code=code)


async def pruned(store: Store, before_s: float, limit: int = 3) -> int:
    """Prune to the end; return how many records were removed."""
    total, after, calls = 0, "", 0
    while True:
        found = await store.prune(before_s, NOW_S, after=after, limit=limit)
        total, after, calls = total + found.removed, found.after, calls + 1
        assert calls < 100, "it has no end"
        if not after:
            return total


class GrowthConformance:
    async def test_what_ended_long_ago_goes_and_the_newest_stays(self, store: Store) -> None:
        await store.commit([PutApp(an_app()), *(PutDevice(a_device(f"d{n}")) for n in range(4))])
        old = [_made(10 * d + n, f"d{d}", created_s=1000.0 + n) for d in range(3) for n in range(4)]
        await store.commit([PutDeployment(d, _entry(d, d.created_s)) for d in old])
        # d1 has a younger one, d2 an open one; d3 one whose clock was wrong.
        young = _made(15, "d1", created_s=5000.0)
        open_one = _made(25, "d2", State.FETCHING, created_s=900.0)
        ahead = _made(31, "d3", created_s=1000.0)
        await store.commit(
            [PutDeployment(ahead, _entry(ahead, NOW_S + 9e6)), PutDeployment(young, _entry(young, 5000.0))]
        )
        await store.commit([PutDeployment(open_one, _entry(open_one, 6000.0))])
        assert await pruned(store, 500.0) == 0
        assert await pruned(store, 2000.0) == len(old) + (3 + 4 + 4)
        assert {d.number for d in await store.deployments("app1", "d0")} == {3}
        assert {d.number for d in await store.deployments("app1", "d1")} == {15}
        assert {d.number for d in await store.deployments("app1", "d2")} == {25}
        for device, left in {"d0": [], "d1": [5000.0], "d2": [6000.0], "d3": [NOW_S + 9e6]}.items():
            assert [e.at_s for e in await store.history("app1", device)] == left
            view = await store.device("app1", device)
            assert view is not None and view.deployment is not None
        assert await pruned(store, 2000.0) == 0
        # What stayed goes on: its numbers, and the history behind it.
        await store.commit([PutDeployment(old[3], _entry(old[3], 7000.0))])
        assert [e.at_s for e in await store.history("app1", "d0")] == [7000.0]

    async def test_each_call_looks_at_so_many_and_all_is_reached(self, store: Store) -> None:
        await store.commit([PutApp(an_app()), PutDevice(a_device())])
        made = [_made(n, "dev1", created_s=1000.0) for n in range(1, 21)]  # of one moment: a place is more than a time
        await store.commit([PutDeployment(d, _entry(d, 1000.0)) for d in made])
        found = await store.prune(2000.0, NOW_S, limit=7)
        assert found.removed == 7 and found.after
        assert await pruned(store, 2000.0, limit=7) == 13 + 19
        assert [d.number for d in await store.deployments("app1", "dev1")] == [20]

    async def test_documents_go_by_number_and_by_key(self, store: Store) -> None:
        await store.commit([PutDocument(c, f"k{n}", b"") for c in ("c", "other") for n in range(8)])
        await store.commit([TrimDocuments("c", 6, below="k1")])
        assert [k for k, _ in await store.documents("c")] == [f"k{n}" for n in range(2, 8)]
        await store.commit([TrimDocuments("c", 100, below="k5~")])
        assert [k for k, _ in await store.documents("c")] == ["k6", "k7"]
        await store.commit([TrimDocuments("c", 1, below="k0")])
        assert [k for k, _ in await store.documents("c")] == ["k7"]
        assert len(await store.documents("other")) == 8
