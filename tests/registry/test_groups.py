"""Group updates: stored before they are answered, done once, whoever comes in between and however often it ends."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from dfud.api import (
    App,
    Change,
    Device,
    DeviceChanged,
    Metadata,
    NotFoundError,
    PeerError,
    PutApp,
    PutDevice,
    PutDocument,
    RefusedError,
    SetFirmware,
    StoreError,
)
from dfud.model.selectors import EVERYTHING, parse_selector_untrusted
from dfud.registry import audit, groups
from dfud.registry.groups import COLLECTION, GroupJob, JobState, NobodyMatches
from dfud.registry.writing import Precondition
from tests.registry.desk import Desk, desk
from tests.registry.served import APPS, DFU, ask, prepared

HOLD = {"hold": True}


@pytest.fixture
async def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    monkeypatch.setattr(groups, "PAGE", 4)
    async with desk(tmp_path) as found:
        await found.store.commit(devices("a", 30))
        yield found


def devices(app: str, number: int, **firmware: object) -> list[Change]:
    spec = {"firmware": firmware} if firmware else {}
    names = [f"d{n:05}" for n in range(number)]
    return [
        PutApp(App(Metadata(app, resource_version="1"), {"signing": {"mode": "optional"}})),
        *(PutDevice(Device(Metadata(n, app, resource_version="1", labels={"odd": str(int(n[-1]) % 2)}), spec)) for n in names),
    ]


async def ended(at: Desk, job: GroupJob) -> GroupJob:
    """Run the jobs until this one has ended."""
    async with trio.open_nursery() as nursery:
        await nursery.start(at.registry.groups.run)
        while (job := await at.registry.groups.get(job.app, job.id)).state is JobState.RUNNING:
            await trio.testing.wait_all_tasks_blocked(0.001)
        nursery.cancel_scope.cancel()
    return job


async def held(at: Desk, app: str = "a") -> set[str]:
    return {wish.device for wish in await at.store.wishes(app) if wish.firmware == HOLD}


async def accept(at: Desk, text: str = "", by: str = "eve", app: str = "a") -> GroupJob:
    selector = parse_selector_untrusted(text) if text else EVERYTHING
    return await at.registry.groups.accept(app, selector, text, HOLD, by)


async def test_a_group_is_set_and_each_device_told_once(at: Desk) -> None:
    await at.registry.set_firmware("a", "d00003", HOLD, "bob")
    await at.registry.set_firmware("a", "d00005", {"hold": False}, "bob")
    told: Counter[str] = Counter()
    at.bus.subscribe(DeviceChanged, lambda event: told.update([event.device]))
    job = await accept(at, "odd=1")
    assert (job.id, job.matched, job.state) == ("1", 15, JobState.RUNNING)
    assert not told, "accepted is not done"
    job = await ended(at, job)
    assert (job.state, job.changed, job.unchanged) == (JobState.DONE, 14, 1)
    assert job.replaced == {"none": 13, "no version": 1}
    assert await held(at) == {f"d{n:05}" for n in range(30) if n % 2}
    assert told == Counter(f"d{n:05}" for n in range(30) if n % 2 and n != 3)
    entries = [e for _, e in await audit.read(at.store) if e.by == "eve"]
    assert [e.what for e in entries] == ["update-group", "group-updated"]
    assert "odd=1, 15 devices, spec.firmware -> no version" in entries[0].detail
    assert "14 devices changed to no version (1 from no version, 13 from none), 1 unchanged" in entries[1].detail


async def test_an_update_for_nobody_is_refused_and_leaves_no_job(at: Desk) -> None:
    with pytest.raises(NobodyMatches, match="no device of app a matches 'odd=7'; nothing was changed"):
        await accept(at, "odd=7")
    assert await at.registry.groups.of_app("a") == []
    assert [e.what for _, e in await audit.read(at.store) if e.by == "eve"] == []


async def test_a_job_that_is_killed_again_and_again_is_done_whole_and_each_device_once(at: Desk) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    told: Counter[str] = Counter()
    right, commits = at.store.commit, 0

    async def commit(changes: Sequence[Change]) -> None:
        nonlocal commits
        commits += 1
        # The first ends before it is stored and the second behind that, so that there is one of each whatever is drawn.
        if commits == 1 or (commits > 2 and rng.random() < 0.4):
            raise _Killed
        await right(changes)
        for change in changes:
            if isinstance(change, SetFirmware):
                told.update(change.devices)
        if commits == 2 or rng.random() < 0.4:
            raise _Killed

    job = await accept(at)
    at.store.commit = commit  # type: ignore[method-assign]
    while job.state is JobState.RUNNING:
        try:
            await ended(at, job)
        except* _Killed:
            pass
        job = await at.registry.groups.get("a", job.id)
    assert (job.state, job.changed, job.unchanged) == (JobState.DONE, 30, 0), seed
    assert set(told.values()) == {1} and len(told) == 30, seed
    assert commits > 3, seed


class _Killed(BaseException):
    pass


async def test_who_is_deleted_or_changed_meanwhile_keeps_nobody_from_it(at: Desk) -> None:
    async def meanwhile() -> None:
        await at.registry.delete_device("a", "d00002", Precondition(), "bob")
        view = await at.store.device("a", "d00001")
        assert view is not None
        await at.registry.update_device("a", "d00001", Device(view.device.metadata, {"mine": 1}), "bob")

    job = await accept(at)
    at.store.before = meanwhile
    job = await ended(at, job)
    assert job.state is JobState.DONE
    assert await held(at) == {f"d{n:05}" for n in range(30) if n != 2}
    view = await at.store.device("a", "d00001")
    assert view is not None and view.device.spec == {"mine": 1, "firmware": HOLD}


async def test_a_store_that_is_away_is_waited_for_and_the_job_says_why(
    at: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "RETRY_S", 0.01)
    right, tries = at.store.commit, 0
    shown: list[str] = []

    async def commit(changes: Sequence[Change]) -> None:
        nonlocal tries
        tries += 1
        if 2 <= tries < 5:
            shown.append((await at.registry.groups.get("a", job.id)).problem)
            raise StoreError("the disk is full", retryable=True)
        await right(changes)

    job = await accept(at)
    at.store.commit = commit  # type: ignore[method-assign]
    job = await ended(at, job)
    assert shown == ["", "the disk is full", "the disk is full"]
    assert (job.state, job.changed, job.problem) == (JobState.DONE, 30, "")


async def test_a_job_that_cannot_go_on_costs_itself_only(at: Desk) -> None:
    first = await accept(at)
    await at.store.commit([PutDocument(COLLECTION, f"{0:018d}", b"{"), PutDocument(COLLECTION, f"{7:018d}", b"\xff")])
    second = await accept(at, "odd=1")
    right = at.store.commit

    async def commit(changes: Sequence[Change]) -> None:
        if any(isinstance(change, SetFirmware) and "d00000" in change.devices for change in changes):
            raise ValueError("surprise")
        await right(changes)

    at.store.commit = commit  # type: ignore[method-assign]
    second = await ended(at, second)
    assert second.state is JobState.DONE and second.changed == 15
    first = await at.registry.groups.get("a", first.id)
    assert first.state is JobState.FAILED and "surprise" in first.problem


async def test_records_that_cannot_be_read_cost_themselves_and_are_forgotten_by_their_number(at: Desk) -> None:
    whole = GroupJob(id="x", app="a", selector="", firmware=HOLD, by="eve", created_s=1e300)
    odd = {
        3: b"{",
        4: msgspec.json.encode(whole),
        5: msgspec.json.encode(msgspec.structs.replace(whole, id="9" * 30)),
        6: msgspec.json.encode(msgspec.structs.replace(whole, id="1")),  # says that it is another
        7: b'{"id": "\xc2\xb2"' + b"[" * 5000,
    }
    await at.store.commit([PutDocument(COLLECTION, f"{number:018d}", value) for number, value in odd.items()])
    job = await accept(at, "odd=1")
    assert [j.id for j in await at.registry.groups.of_app("a")] == [job.id]
    assert (await ended(at, job)).state is JobState.DONE
    for number in odd:
        with pytest.raises(NotFoundError):
            await at.registry.groups.get("a", str(number))
        assert "forgotten" in (await at.registry.groups.cancel("a", str(number), "eve")).problem
        with pytest.raises(NotFoundError):
            await at.registry.groups.cancel("a", str(number), "eve")
    assert [key for key, _ in await at.store.documents(COLLECTION)] == [f"{int(job.id):018d}"]


async def test_a_job_that_cannot_even_be_ended_holds_up_no_other(at: Desk) -> None:
    stuck, good = await accept(at), await accept(at, "odd=1")
    right, tries = at.store.commit, 0

    async def commit(changes: Sequence[Change]) -> None:
        nonlocal tries
        if any(isinstance(c, PutDocument) and c.key == f"{int(stuck.id):018d}" for c in changes):
            tries += 1
            raise StoreError("this record cannot be written")
        await right(changes)

    at.store.commit = commit  # type: ignore[method-assign]
    assert (await ended(at, good)).state is JobState.DONE
    assert (await at.registry.groups.get("a", stuck.id)).state is JobState.RUNNING
    assert tries <= 2 * (30 // groups.PAGE + 3), "twice a round, and none without a pause"


async def test_a_small_job_does_not_wait_for_a_large_one(at: Desk) -> None:
    await at.store.commit(devices("b", 2))
    large, small = await accept(at), await accept(at, app="b")
    right = at.store.commit
    pages: list[str] = []

    async def commit(changes: Sequence[Change]) -> None:
        pages.extend(change.app for change in changes if isinstance(change, SetFirmware))
        await right(changes)

    at.store.commit = commit  # type: ignore[method-assign]
    assert (await ended(at, large)).changed == 30
    assert (await at.registry.groups.get("b", small.id)).state is JobState.DONE
    assert pages[:3] == ["a", "b", "a"], "each has a page in its turn"


async def test_a_cancelled_job_ends_and_says_how_far_it_came(at: Desk) -> None:
    job = await accept(at)

    async def cancel() -> None:
        await at.registry.groups.cancel("a", job.id, "bob")

    at.store.before = cancel
    assert (await ended(at, job)).state is JobState.CANCELLED
    assert await held(at) == set(), "the page that was under way is not done"
    with pytest.raises(RefusedError, match="cancelled already"):
        await at.registry.groups.cancel("a", job.id, "bob")
    with pytest.raises(NotFoundError):
        await at.registry.groups.cancel("b", job.id, "bob")
    for unknown in ("9", "x", "-1", "1" * 30, "\u0661"):
        with pytest.raises(NotFoundError):
            await at.registry.groups.get("a", unknown)
    assert [e.detail for _, e in await audit.read(at.store) if e.what == "cancel-group"] == [
        "job 1: 0 of 30 devices were changed before that"
    ]


async def test_what_no_device_could_have_is_refused_before_anything_is_stored(at: Desk) -> None:
    for firmware, error in (
        ({"version": "9"}, NotFoundError),
        ({"version": 9}, PeerError),
        ({"x": 1 << 70}, PeerError),
    ):
        with pytest.raises(error):
            await at.registry.groups.accept("a", EVERYTHING, "", firmware, "eve")
    with pytest.raises(NotFoundError):
        await accept(at, app="nowhere")
    assert await at.registry.groups.of_app("a") == []


async def test_jobs_are_bounded_and_those_that_ended_are_forgotten(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "OPEN_MAX", 3)
    monkeypatch.setattr(groups, "KEPT_MAX", 2)
    for number in range(5):
        assert (await ended(at, await accept(at))).id == str(number + 1)
    assert [job.id for job in await at.registry.groups.of_app("a")] == ["5", "4"]
    for _ in range(3):
        await accept(at)
    with pytest.raises(RefusedError, match="3 group updates are under way"):
        await accept(at)


async def test_who_hangs_up_has_asked_for_nothing_or_for_all(at: Desk) -> None:
    async def hang_up() -> None:
        scope.cancel()

    at.store.before = hang_up
    with trio.CancelScope() as scope:
        await accept(at)
    (job,) = await at.registry.groups.of_app("a")
    assert (await ended(at, job)).changed == 30


async def test_a_group_goes_on_after_the_daemon_was_killed(nursery: trio.Nursery, tmp_path: Path) -> None:
    number = 6000
    daemon = await prepared(tmp_path / "dfud", "", [devices("a", number)])
    gone = trio.Event()

    async def run(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await daemon.run(task_status=task_status)
        gone.set()

    await nursery.start(run)
    async with daemon.client() as admin:
        body = {"selector": "odd", "firmware": HOLD}
        job = await ask(admin, 202, "POST", f"{DFU}/update", json=body)
        assert (job["matched"], job["state"]) == (number, "running")
    daemon.signal(signal.SIGKILL)
    await gone.wait()
    await nursery.start(daemon.run)
    async with daemon.client() as admin:
        while (job := await ask(admin, 200, "GET", f"{DFU}/jobs/{job['job']}"))["state"] == "running":
            await trio.sleep(0.05)
        assert (job["changed"], job["unchanged"], job["replaced"]) == (number, 0, {"none": number})
        device = await ask(admin, 200, "GET", f"{APPS}/a/devices/d{number - 1:05}")
        assert device["spec"]["firmware"] == HOLD
        assert [j["job"] for j in await ask(admin, 200, "GET", f"{DFU}/jobs")] == ["1"]
        await ask(admin, 409, "POST", f"{DFU}/jobs/1/cancel")
        await ask(admin, 404, "GET", f"{DFU}/jobs/2")
    nursery.cancel_scope.cancel()


def test_a_job_says_all_of_itself() -> None:
    job = GroupJob("1", "a", "x=1", None, "eve", 1.0)
    assert msgspec.json.decode(msgspec.json.encode(job), type=GroupJob) == job


async def test_many_devices_are_told_at_once_only_if_somebody_says_so(nursery: trio.Nursery, tmp_path: Path) -> None:
    daemon = await prepared(tmp_path / "dfud", "update_max = 2", [devices("a", 3)])
    await nursery.start(daemon.run)
    async with daemon.client() as admin:
        params = {"version": "1", "hardware": "x", "kind": "raw"}
        await ask(admin, 201, "POST", f"{DFU}/firmware", params=params, content=b"image")
        body = {"selector": "odd", "firmware": {"version": "1"}}
        found = await ask(admin, 409, "POST", f"{DFU}/update", json=body)
        assert "selector: odd matches 3 devices, expected at most 2 ([registry] update_max)" in found["message"]
        assert "dfuctl rollout create NAME 1 -l 'odd'" in found["message"] and "--all-at-once" in found["message"]
        assert await ask(admin, 200, "GET", f"{DFU}/jobs") == []
        # What is not sent, and what takes a wish away, tells nobody.
        for other in ({**body, "firmware": None}, {**body, "firmware": HOLD}, {**body, "allAtOnce": True}):
            job = await ask(admin, 202, "POST", f"{DFU}/update", json=other)
            assert job["matched"] == 3
    nursery.cancel_scope.cancel()


async def test_a_wish_is_said_to_be_no_change_of_access(at: Desk) -> None:
    heard: list[DeviceChanged] = []
    at.bus.subscribe(DeviceChanged, heard.append)
    job = await at.registry.groups.accept("a", EVERYTHING, "", HOLD, "admin")
    await ended(at, job)
    assert len(heard) == 30 and not any(event.access for event in heard)


@pytest.mark.parametrize(
    ("spec", "access"),
    [
        ({"firmware": {"version": "1"}}, False),
        ({"note": "n"}, False),
        ({"authentication": {"credentials": [{"pass": "pw"}]}}, True),
        ({"credentials": {"credentials": []}}, True),
        ({"core": {"disabled": True}}, True),
        ({"alias": ["x"]}, True),
        ({"gatewaySelector": {"matchNames": ["g"]}}, True),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_change_of_a_device_says_whether_log_ins_rest_on_it(at: Desk, spec: dict[str, object], access: bool) -> None:
    heard: list[DeviceChanged] = []
    at.bus.subscribe(DeviceChanged, heard.append)
    given = Device(Metadata("d00001", "a", labels={"odd": "1"}), spec)
    await at.registry.update_device("a", "d00001", given, "admin")
    assert [event.access for event in heard] == [access]
