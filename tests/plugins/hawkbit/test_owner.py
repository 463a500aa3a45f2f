"""Two dfuds with an app of one name at one hawkBit: the second is told so, and touches nothing of the first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from dfud_hawkbit.reconcile import Reconciler
from dfud_hawkbit.routes import take_over

from dfud.api import Device, Metadata
from tests.plugins.hawkbit.harness import Harness, Server, harness_at, person_at, sent, until, whole_way

NEW = b"new image " * 3000


@asynccontextmanager
async def neighbour_of(harness: Harness, directory: Path, **config: float) -> AsyncIterator[Harness]:
    """Another dfud with the same app, at the same hawkBit."""
    async with trio.open_nursery() as nursery:
        other = Harness(harness.server, directory, nursery, app=harness.app, **config)
        await other.start()
        yield other
        nursery.cancel_scope.cancel()


async def refused(harness: Harness, name: str = "d1") -> str:
    """Wait until a device's target is another dfud's; return the sentence."""

    async def ask() -> str:
        link = await harness.link(name)
        return link.problem if link is not None and link.foreign else ""

    return str(await until("its target is another's", ask))


async def test_the_second_dfud_is_refused_with_a_sentence_and_closes_nothing(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path / "one") as one, person_at(hawkbit) as person:
        device = await one.device()
        action = await person.assign(await person.simple_set("2.0", NEW), one.target())
        await until("it is wanted", lambda: one.is_wanted("2.0"))
        await sent(device)
        async with neighbour_of(one, tmp_path / "two") as two:
            await two.registry.create_device(two.app, Device(Metadata("d1")), "test")
            why = await refused(two)
            assert one.store.sync.owner.mark in why and "take-over" in why and one.target() in why
            # It has the image running, and would have said of the other's action that it is done.
            other = two.simulate("d1", NEW, "2.0")
            await other.poll()
            await two.publish("2.0", NEW)
            await two.want("2.0")
            await two.quiet()
            assert (await person.action(one.target(), action))["active"] is True
            assert "feedback" not in " ".join(two.store.sync.client.requests)
            assert why in two.store.sync.known.problems.values()
            report = await Reconciler(two.store).run(two.app, dry_run=False)
            assert [(row.finding, row.result) for row in report.rows] == [("of-another-dfud", "")]
        await whole_way(device)
        await until("the first goes on", lambda: person.finished(one.target(), action))


async def test_a_dfud_takes_targets_over_and_the_other_lets_go(hawkbit: Server, tmp_path: Path) -> None:
    """As after the loss of a dfud's records: its successor has another mark."""
    async with harness_at(hawkbit, tmp_path / "one", resync_s=1.0) as one, person_at(hawkbit) as person:
        await one.device()
        async with neighbour_of(one, tmp_path / "two") as two:
            await two.registry.create_device(two.app, Device(Metadata("d1")), "test")
            await refused(two)
            assert await take_over(two.store, two.app) == [two.target()]
            await two.registered()
            await refused(one)
            action = await person.assign(await person.simple_set("2.0", NEW), two.target())
            await whole_way(two.simulate("d1"))
            await until("the new one does it", lambda: person.finished(two.target(), action))
            assert await one.wanted() is None


async def test_targets_from_before_there_were_marks_belong_to_who_comes_first(hawkbit: Server, tmp_path: Path) -> None:
    """Both had registered the device, as both once could; a list of targets tells them apart."""
    async with harness_at(hawkbit, tmp_path / "one", resync_s=1.0) as one, person_at(hawkbit) as person:
        await one.device()
        await person.ask("PUT", f"/targets/{one.target()}", json={"description": f"app {one.app} of dfud"})

        async def marked() -> bool:
            found = await person.ask("GET", f"/targets/{one.target()}")
            return bool(found["description"] == one.store.sync.owner.description(one.app))

        await until("it is marked", marked)
        link = await one.link()
        assert link is not None and link.registered and not link.foreign


async def test_what_a_person_describes_stays_and_the_attribute_marks_the_target(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path / "one", resync_s=1.0) as one, person_at(hawkbit) as person:
        device = await one.device()
        await device.poll()
        await one.quiet()
        await person.ask("PUT", f"/targets/{one.target()}", json={"description": "in the attic"})
        async with neighbour_of(one, tmp_path / "two") as two:
            await two.registry.create_device(two.app, Device(Metadata("d1")), "test")
            await refused(two)
        assert (await person.ask("GET", f"/targets/{one.target()}"))["description"] == "in the attic"


async def test_the_mark_outlives_a_restart(hawkbit: Server, tmp_path: Path) -> None:
    async with harness_at(hawkbit, tmp_path) as harness:
        await harness.device()
        mark = harness.store.sync.owner.mark
        await harness.stop()
        await harness.start()
        assert harness.store.sync.owner.mark == mark and len(mark) == 16
        await harness.store.sync.feed.resync()
        await harness.quiet()
        link = await harness.link()
        assert link is not None and link.registered and not link.foreign
