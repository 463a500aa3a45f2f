"""What one process changes, another does not answer from memory: each kind of record, with notifications and without."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from dfud.api import (
    Aged,
    App,
    Bus,
    ConflictError,
    Credentials,
    DeleteApp,
    DeleteDevice,
    DeleteFirmware,
    Deployment,
    Device,
    EventSink,
    Firmware,
    Metadata,
    NotFoundError,
    PutApp,
    PutDevice,
    PutDocument,
    PutFirmware,
    Recall,
    Reply,
    Request,
    State,
    StoreError,
    Telemetry,
)
from dfud.controller.fleet import CRASHES, CrashRecord
from dfud.endpoint.sinking import Sinks
from dfud.model.credentials import protect
from dfud.wire.manifest import Manifest, unsigned
from dfud.wire.messages import Status, Type, decode_command_untrusted, encode_status
from tests.endpoint.pair import Pair, Process, running
from tests.endpoint.world import KEY, basic

SEEN_S = 20.0  # for a test to fail
RUNS = b"what it runs"
STATUS = encode_status(Status("1.0", hashlib.sha256(RUNS).digest(), "esp32c3", 7, 16384, 1 << 22))


def app(**spec: Any) -> PutApp:
    version = str(len(spec) and hash(str(spec)))  # another one with every effective write, as the registry has it
    return PutApp(App(Metadata("app", uid="u", resource_version=version), {"signing": {"mode": "optional"}, **spec}))


def key_of(password: str) -> bytes:
    return password.ljust(16, "0").encode()


def device(password: str = "pw", name: str = "dev", **spec: Any) -> PutDevice:
    credentials = {"credentials": [{"pass": password}, {"psk": {"key": base64.b64encode(key_of(password)).decode()}}]}
    return PutDevice(
        Device(Metadata(name, "app", uid=f"u{name}"), protect({"authentication": credentials, **spec}, KEY))
    )


async def publish(process: Process, version: str, image: bytes, **changes: Any) -> Firmware:
    writer = await process.store.new_blob()
    await writer.write(image)
    sha256 = await writer.commit()
    made = Firmware(
        app="app",
        version=version,
        hardware="esp32c3",
        sequence=int(version[0]),
        size_bytes=len(image),
        sha256=sha256,
        manifest=unsigned(Manifest("app", version, "esp32c3", int(version[0]), len(image), bytes.fromhex(sha256))),
        kind="raw",
    )
    made = msgspec.structs.replace(made, **changes)
    await process.change(PutFirmware(made, create=not changes))
    await writer.aclose()
    return made


async def post(process: Process, login: str = "dev@app:pw", as_device: str = "") -> Any:
    credentials = Credentials(basic(login))
    request = Request("http", "10.0.0.1", credentials, "dfu", STATUS, as_device=as_device)
    found = process.endpoint.quick(request) or await process.endpoint.post(request)
    assert isinstance(found, Reply)
    return found


async def code(process: Process, login: str = "dev@app:pw", as_device: str = "") -> int:
    return int((await post(process, login, as_device)).code)


async def told(process: Process) -> tuple[str, str]:
    """What a device is told: which version, and why not if it has to wait."""
    found = await post(process)
    command = decode_command_untrusted(found.body)
    return (command.version if command.type is Type.UPDATE else str(command.type.name).lower(), command.reason)


async def problem(process: Process) -> str:
    return (await process.controller.desired("app", "dev"))[0].problem


async def wanted(process: Process) -> str:
    return (await process.controller.desired("app", "dev"))[0].version


async def key(process: Process) -> bytes | None:
    identity = "dev@app"
    return process.endpoint.key_for_cached("coap", identity) or await process.endpoint.key_for("coap", identity)


async def rollouts(process: Process) -> dict[str, str]:
    return {r.name: str(r.status.state) for r in process.controller.rollouts.all_of("app")}


async def make_rollout(process: Process) -> None:
    spec: dict[str, object] = {"firmware": "2.0", "waves": [{"percent": 100}]}
    await process.controller.rollouts.create("app", Metadata("r"), spec, "eva", draft=False)
    with trio.fail_after(SEEN_S):
        while await rollouts(process) != {"r": "telling"}:
            await trio.sleep(0.01)


async def act(process: Process, action: str) -> None:
    await process.controller.rollouts.act("app", "r", action, "eva")


async def delete_rollout(process: Process) -> None:
    await act(process, "abort")
    await process.controller.rollouts.delete("app", "r")


async def recall(process: Process) -> None:
    found = await process.store.firmware("app", "2.0")
    assert found is not None
    await process.change(PutFirmware(msgspec.structs.replace(found, recalled=Recall("it burns")), expect=found))


async def pardon(process: Process) -> None:
    found = await process.store.firmware("app", "2.0")
    assert found is not None
    await process.change(PutFirmware(msgspec.structs.replace(found, recalled=None), expect=found))


Look = Callable[[Process], Awaitable[Any]]
Act = Callable[[Process], Awaitable[None]]


async def crash(process: Process) -> str:
    with contextlib.suppress(NotFoundError):
        return str((await process.controller.fleet.crash("app", "f1"))["title"])
    return ""


def put(*changes: Any) -> Act:
    return lambda process: process.change(*changes)


WANTS: Any = {"firmware": {"version": "2.0"}}
# What is done before at one; what the other is asked then, and what it says; what is done then, and what it has to say after that.
CASES: dict[str, tuple[list[Act], Look, Any, Act, Any]] = {
    "a password": ([], code, 200, put(device("new")), 403),
    "a disabled device": ([], code, 200, put(device(core={"disabled": True})), 403),
    "a deleted device": ([], code, 200, put(DeleteDevice("app", "dev")), 403),
    "a device that is there again": ([put(DeleteDevice("app", "dev"))], code, 403, put(device()), 200),
    "a disabled app": ([], code, 200, put(app(core={"disabled": True})), 403),
    "a deleted app": ([], code, 200, put(DeleteApp("app")), 403),
    "an alias": (
        [put(device(alias=["nick"]))],
        lambda p: code(p, "nick@app:pw"),
        200,
        put(device()),
        403,
    ),
    "a gateway": (
        [put(device(name="behind", gatewaySelector={"matchNames": ["dev"]}))],
        lambda p: code(p, as_device="behind"),
        200,
        put(device(name="behind")),
        403,
    ),
    "a pre-shared key": ([], key, key_of("pw"), put(device("new")), key_of("new")),
    "a device's target": ([], wanted, "", put(device(**WANTS)), "2.0"),
    "an app's target": ([], wanted, "", put(app(**WANTS)), "2.0"),
    "what a device is told": (
        [put(device(**WANTS))],
        lambda p: _first(told(p)),
        "2.0",
        put(device()),
        "wait",
    ),
    "a firmware that is published": (
        [put(DeleteFirmware("app", "2.0")), put(device(**WANTS))],
        problem,
        "firmware 2.0 is not published",
        lambda p: _nothing(publish(p, "2.0", b"another new image")),
        "",
    ),
    "a firmware that is deleted": (
        [put(device(**WANTS))],
        problem,
        "",
        put(DeleteFirmware("app", "2.0")),
        "firmware 2.0 is not published",
    ),
    "a recall": ([put(device(**WANTS))], problem, "", recall, "2.0 is recalled: it burns"),
    "the end of a recall": ([put(device(**WANTS)), recall], problem, "2.0 is recalled: it burns", pardon, ""),
    "a rollout that is made": ([], rollouts, {}, make_rollout, {"r": "telling"}),
    "a rollout that is paused": (
        [make_rollout],
        rollouts,
        {"r": "telling"},
        lambda p: act(p, "pause"),
        {"r": "paused"},
    ),
    "a rollout that is deleted": ([make_rollout], rollouts, {"r": "telling"}, delete_rollout, {}),
    "a crash that is seen first": (
        [],
        crash,
        "",
        put(PutDocument(CRASHES, "app/f1", msgspec.json.encode(CrashRecord("f1", "it broke", 1.0)), tell=True)),
        "it broke",
    ),
    "what a rollout wants": ([], wanted, "", make_rollout, "2.0"),
}


async def _first(found: Awaitable[tuple[str, str]]) -> str:
    return (await found)[0]


async def _nothing(found: Awaitable[Any]) -> None:
    await found


async def until(look: Callable[[], Awaitable[Any]], expected: Any) -> None:
    found: Any = None
    try:
        with trio.fail_after(SEEN_S):
            while (found := await look()) != expected:
                await trio.sleep(0.01)
    except trio.TooSlowError:
        raise AssertionError(f"{found!r}, expected {expected!r}") from None


async def prepared(pair: Pair) -> None:
    await pair.one.change(app(), device())
    await publish(pair.one, "1.0", RUNS)
    await publish(pair.one, "2.0", b"a new image" * 500)
    await post(pair.one)


@pytest.mark.parametrize("how", ["told", "missed", "aged"])
@pytest.mark.parametrize("what", CASES)
async def test_what_one_process_changes_the_other_sees(tmp_path: Path, what: str, how: str) -> None:
    before, look, was, change, becomes = CASES[what]
    async with running(tmp_path) as pair:
        await prepared(pair)
        for step in before:
            await step(pair.one)
        await until(lambda: look(pair.other), was)
        assert await look(pair.other) == was  # and now it is remembered
        pair.lost = how != "told"
        await change(pair.one)
        if how == "missed":
            pair.hear_again()
        elif how == "aged":
            pair.other.bus.publish(Aged())
        await until(lambda: look(pair.other), becomes)


async def test_nothing_is_handed_out_of_a_recalled_version_by_who_did_not_hear_of_it(tmp_path: Path) -> None:
    async with running(tmp_path) as pair:
        await prepared(pair)
        await pair.one.change(device(**WANTS))

        async def package(process: Process) -> str:
            found = process.controller.fetches.package_of("app", "dev")
            return found if found is not None else await process.controller.load_package_of("app", "dev")

        await until(lambda: _first(told(pair.other)), "2.0")
        await until(lambda: _is_something(package(pair.other)), True)
        pair.lost = True
        await recall(pair.one)
        pair.hear_again()
        assert await package(pair.other) == "" == await package(pair.other)


async def _is_something(found: Awaitable[str]) -> bool:
    return bool(await found)


async def test_a_rollout_speaks_for_its_devices_while_rollouts_are_read_again(tmp_path: Path) -> None:
    """Otherwise its devices would be called back in between."""
    async with running(tmp_path) as pair:
        await prepared(pair)
        await make_rollout(pair.one)
        await until(lambda: wanted(pair.other), "2.0")
        said: list[str] = []
        half: Any = pair.other.half
        read = half.documents

        async def in_between(*arguments: Any, **more: Any) -> Any:
            found = await read(*arguments, **more)
            said.append(await wanted(pair.other))
            return found

        half.documents = in_between
        pair.hear_again()
        with trio.fail_after(SEEN_S):
            while len(said) < 2:
                await trio.sleep(0.01)
        assert set(said) == {"2.0"}


async def test_what_failed_at_either_is_kept_with_a_rollout(tmp_path: Path) -> None:
    """Also where neither hears of the other: what is stored is what counts."""
    async with running(tmp_path) as pair:
        pair.lost = True
        for number in range(6):
            process = (pair.one, pair.other)[number % 2]
            failures = process.controller.rollouts.failures
            failed = Deployment(
                id=f"{number:032x}",
                app="app",
                device=f"dev{number}",
                version="2.0",
                sha256="00" * 32,
                state=State.FAILED,
                created_s=1.0,
                updated_s=1.0,
                rollout="r",
            )
            for _ in range(2):
                with contextlib.suppress(ConflictError), failures.doubted():
                    await process.store.commit(await failures.noted([failed]))
                    break
        pair.hear_again()
        for process in (pair.one, pair.other):
            found = await process.controller.rollouts.failures.of("r")
            assert [f.device for f in found] == [f"dev{number}" for number in range(6)]


async def test_telemetry_is_handed_on_once_by_who_took_it(tmp_path: Path) -> None:
    class Sink(EventSink):
        name = "kept"

        def __init__(self) -> None:
            self.taken: list[bytes] = []

        async def run(self, bus: Bus, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()

        async def take(self, telemetry: Telemetry) -> None:
            self.taken.append(telemetry.body)

    async with running(tmp_path) as pair:
        await prepared(pair)
        kept = [Sink(), Sink()]
        for process, sink in zip((pair.one, pair.other), kept, strict=True):
            process.endpoint.sinks = Sinks([sink], 10.0)
        for number in range(10):
            request = Request("http", "10.0.0.1", Credentials(basic("dev@app:pw")), "temp", b"%d" % number)
            found = await (pair.one, pair.other)[number % 2].endpoint.post(request)
            assert isinstance(found, Reply) and found.code == 202
        await trio.sleep(0.5)  # whatever is told between processes is told by then
        assert [sink.taken for sink in kept] == [[b"%d" % n for n in range(start, 10, 2)] for start in (0, 1)]


def _noting(hear: Callable[[Any, int], None], heard: list[int]) -> Callable[[Any, int], None]:
    def noting(key: Any, number: int) -> None:
        hear(key, number)
        heard.append(number)

    return noting


async def test_a_rate_of_a_rollout_holds_over_both(tmp_path: Path) -> None:
    async with running(tmp_path) as pair:
        await prepared(pair)
        spec: dict[str, object] = {"firmware": "2.0", "waves": [{"percent": 100}], "perMinute": 6}
        made = await pair.one.controller.rollouts.create("app", Metadata("r"), spec, "eva", draft=False)
        uid = made.metadata.uid
        books = [process.controller.rollouts for process in (pair.one, pair.other)]
        await until(lambda: rollouts(pair.other), {"r": "telling"})
        heard: list[int] = []
        for process in (pair.one, pair.other):
            counts: Any = process.controller.spent._counts
            counts._gather_s = 0.0
            counts._heard = _noting(counts._heard, heard)
        taken = 0
        for _ in range(60):  # ten minutes
            for book in (books[taken % 2], books[1 - taken % 2]):
                if book.take(uid, pair.clock[0]) is None:
                    taken += 1
                    with trio.fail_after(SEEN_S):
                        while sum(heard) < taken:
                            await trio.lowlevel.checkpoint()
            pair.clock[0] += 10.0
        assert 58 <= taken <= 63, taken


async def test_what_a_device_may_have_written_holds_over_both(tmp_path: Path) -> None:
    async with running(tmp_path, history_per_hour=100) as pair:
        budgets = [process.controller._keeper.budget for process in (pair.one, pair.other)]
        spent = 0
        with pytest.raises(StoreError, match="history_per_hour"):
            while spent < 200:
                budgets[spent % 2].spend("app", "dev", 1)
                spent += 1
                if spent % 10 == 0:
                    await trio.sleep(0.25)
        assert 98 <= spent <= 112, spent
