"""Steps are stored only while what they were decided by is true; leading and telling in one process. Part of StoreConformance."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
import trio

from dfud.api import (
    TOLD_BYTES_MAX,
    Actual,
    ConflictError,
    DeleteDevice,
    ExpectDevice,
    HistoryEntry,
    NotFoundError,
    PutActual,
    PutApp,
    PutDeployment,
    PutDevice,
    PutDocument,
    State,
    Store,
    StoreError,
)
from dfud.testing.store_values import a_deployment, a_device, an_app


class StepConformance:
    async def test_a_step_is_stored_only_while_what_it_was_decided_by_is_true(self, store: Store) -> None:
        async def sequence() -> int:
            found = await store.device("app1", "dev1")
            assert found is not None and [found] == await store.devices("app1")
            return found.sequence

        actual = Actual("app1", "dev1", "1.0", "ab" * 32, "esp32c3")
        await store.commit([PutApp(an_app()), PutDevice(a_device())])
        assert await sequence() == 0
        await store.commit([ExpectDevice("app1", "dev1", 0), PutActual(actual)])
        first = await sequence()
        assert first > 0
        with pytest.raises(ConflictError):
            await store.commit([PutDocument("c", "k", b""), ExpectDevice("app1", "dev1", 0), PutActual(actual)])
        assert await store.document("c", "k") is None
        with pytest.raises(NotFoundError):
            await store.commit([ExpectDevice("app1", "other", 0)])
        entry = HistoryEntry(a_deployment().id, "app1", "dev1", 1.0, State.PENDING, "1.0")
        await store.commit(
            [ExpectDevice("app1", "dev1", first), PutDeployment(a_deployment(), entry), PutActual(actual)]
        )
        assert await sequence() == first + 2
        await store.commit([PutDevice(a_device(version="2")), PutDocument("c", "k", b"")])
        assert await sequence() == first + 2
        await store.commit([DeleteDevice("app1", "dev1"), PutDevice(a_device())])
        assert await sequence() == 0
        await store.commit([PutDeployment(a_deployment(2))])
        found = await store.device("app1", "dev1")
        assert found is not None and found.actual is None and found.deployment == a_deployment(2)
        assert found.sequence > 0 and not first <= found.sequence <= first + 2

    async def test_of_two_who_have_read_the_same_one_stores_their_step(self, store: Store) -> None:
        await store.commit([PutApp(an_app()), PutDevice(a_device()), PutDeployment(a_deployment())])
        stored = []

        async def step(number: int) -> None:
            for _ in range(5):
                found = await store.device("app1", "dev1")
                assert found is not None and found.deployment is not None
                after = msgspec.structs.replace(found.deployment, chunks_done=found.deployment.chunks_done + 1)
                with contextlib.suppress(ConflictError):
                    await store.commit([ExpectDevice("app1", "dev1", found.sequence), PutDeployment(after)])
                    stored.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(step, number)
        found = await store.device("app1", "dev1")
        assert found is not None and found.deployment is not None
        assert found.deployment.chunks_done == len(stored) >= 5

    async def test_work_is_led_until_the_block_ends(self, store: Store) -> None:
        with trio.fail_after(30):
            for _ in range(2):
                async with store.lead("work"), store.lead("other work"):
                    await trio.lowlevel.checkpoint()
            with trio.move_on_after(0):
                async with store.lead("work"):
                    await trio.sleep_forever()
            async with store.lead("work"):
                pass

    async def test_what_is_told_is_bounded(self, store: Store) -> None:
        await store.tell("topic", b"\0\xff" * (TOLD_BYTES_MAX // 2))
        with pytest.raises(StoreError):
            await store.tell("topic", bytes(TOLD_BYTES_MAX + 1))
