"""What is remembered is true, whatever changes while it is found out: changes are put between any two steps of it."""

from __future__ import annotations

import base64
import inspect
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfud.api import (
    App,
    AppChanged,
    Bus,
    Code,
    Credentials,
    DeviceChanged,
    DeviceStateChanged,
    Metadata,
    Missed,
    Reply,
    Request,
    StoreError,
    Waiting,
)
from dfud.controller.keeping import Asked
from dfud.endpoint.auth import Authenticator, Session
from dfud.endpoint.commands import Commands
from dfud.endpoint.config import EndpointConfig
from dfud.endpoint.crowd import Present
from dfud.endpoint.denials import Denied
from dfud.endpoint.endpoint import DeviceEndpoint
from dfud.endpoint.slots import Slots
from dfud.model.credentials import keyed_hash, keys_of, protect
from dfud.wire.messages import Command, Status, Type, decode_command_untrusted, encode_status
from tests.endpoint.scheduled import GatedStore, Gates

KEY = b"k" * 32
CONFIG = EndpointConfig(failures_per_address=10_000, failures_per_device=10_000)
# A seed is printed when one fails: every choice of the test comes out of it.
RANDOMS = st.integers(0, 1 << 48).map(Random)
MANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SALT = b"123456789"


def basic(text: str) -> Credentials:
    return Credentials(b"Basic " + base64.b64encode(text.encode()))


def spec_of(password: str, *, psk: str = "a2V5", gateway: str = "", disabled: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {
        "authentication": {"credentials": [{"pass": {"dfud": keyed_hash(password, KEY, SALT)}}, {"psk": {"key": psk}}]}
    }
    if gateway:
        found["gatewaySelector"] = {"matchNames": [gateway]}
    if disabled:
        found["core"] = {"disabled": True}
    return protect(found, KEY)


class AuthWorld:
    """Two passwords, two devices, an alias that moves, a gateway, an app that is disabled now and then."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.logging_in = 0
        self.logged_in = 0
        self.together = 0
        self.gates = Gates(random)
        self.bus = Bus()
        self.store = GatedStore(self.gates, self.bus)
        self.store.put_app("a", {})
        self.passwords = {"d1": "p1", "d2": "p2"}
        for name, password in self.passwords.items():
            self.store.put("a", name, spec_of(password))
        self.store.aliases["a", "nick"] = "d1"
        self.auth = Authenticator(self.store, self.bus, CONFIG, KEY, lambda: 1.8e9)  # type: ignore[arg-type]  # what it asks of a store

    def change(self) -> None:
        name, password = self.random.choice(("d1", "d2")), self.random.choice(("p1", "p2"))
        match self.random.randrange(8):
            case 0:
                self.store.put("a", name, None)
            case 1:
                self.store.put("a", name, spec_of(password, disabled=True))
            case 2:
                self.store.move_alias("a", "nick", name)
            case 3 | 4:
                self.store.put_app("a", {"core": {"disabled": self.random.random() < 0.5}})
            case 5:
                self.store.put("a", name, spec_of(password, gateway=self.random.choice(("d1", "d2"))))
            case _:
                self.store.put("a", name, spec_of(password, psk=self.random.choice(("a2V5", "b3RoZXI="))))

    def truth(self, named: str, password: str, as_device: str) -> str | None:
        """Return the device that these credentials stand for now."""
        app = self.store.app_specs["a"]
        name = named if ("a", named) in self.store.specs else self.store.aliases.get(("a", named), "")
        spec = self.store.specs.get(("a", name))
        if spec is None or app.get("core", {}).get("disabled") or spec.get("core", {}).get("disabled"):
            return None
        if keyed_hash(password, KEY, SALT) != spec["authentication"]["credentials"][0]["pass"]["dfud"]:
            return None
        if not as_device or as_device == name:
            return name
        other = self.store.specs.get(("a", as_device))
        if other is None or other.get("core", {}).get("disabled"):
            return None
        return as_device if name in other.get("gatewaySelector", {}).get("matchNames", ()) else None

    async def log_in(self, named: str, password: str, as_device: str) -> None:
        if not as_device and self.random.random() < 0.5:
            await self.log_in_with_others(named, password)
        else:
            await self.log_in_alone(named, password, as_device)

    async def log_in_alone(self, named: str, password: str, as_device: str = "") -> None:
        self.logging_in += 1
        try:
            session = await self.auth.session("10.0.0.1", basic(f"{named}@a:{password}"), as_device)
        except (Denied, StoreError):
            return
        finally:
            self.logging_in -= 1
        assert session.device == self.truth(named, password, as_device), "accepted by what is no longer so"
        self.logged_in += 1

    async def log_in_with_others(self, named: str, password: str) -> None:
        self.logging_in += 1
        names = [named, "d1", "d2"]
        requests = [Request("http", "10.0.0.1", basic(f"{n}@a:{password}"), "dfu", b"") for n in names]
        try:
            found = await self.auth.judge(requests, [self.auth.slots.digest(r.credentials) for r in requests])
        finally:
            self.logging_in -= 1
        for name, outcome in zip(names, found, strict=True):
            if isinstance(outcome, Present):
                assert outcome.device == self.truth(name, password, ""), "accepted by what is no longer so"
                if outcome.view is not None:
                    assert outcome.view.device.spec == self.store.specs["a", outcome.device], "an old record"
                self.logged_in += 1
                self.together += 1
            elif outcome is not None:
                assert self.truth(name, password, "") is None, "refused by what is no longer so"

    def check_what_is_remembered(self) -> None:
        for named in ("d1", "d2", "nick"):
            for password in ("p1", "p2"):
                for as_device in ("", "d1", "d2"):
                    known = self.auth.known(basic(f"{named}@a:{password}"), as_device)
                    assert known is None or known.device == self.truth(named, password, as_device)


@pytest.fixture
def slow_gates(monkeypatch: pytest.MonkeyPatch) -> list[Gates]:
    gates: list[Gates] = []

    async def run_sync(function: Any, *arguments: Any, **options: Any) -> Any:
        await gates[-1].pass_()
        found = function(*arguments)
        await gates[-1].pass_()
        return found

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    monkeypatch.setattr("dfud.endpoint.auth.is_slow", lambda spec, username, limits: True)
    return gates


def test_sessions_that_are_true_are_had() -> None:
    """The tests below would pass if nobody ever got in."""

    async def run() -> None:
        world = AuthWorld(Random(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.log_in_alone, "nick", "p1")
            await world.gates.settle()
            assert world.logged_in == 1 and world.auth.known(basic("nick@a:p1")) == Session("a", "d1")
            nursery.start_soon(world.log_in_with_others, "d1", "p1")
            await world.gates.settle()
        assert world.together == 2 and world.auth.known(basic("d1@a:p1")) == Session("a", "d1")

    trio.run(run)


@pytest.mark.parametrize("change", ["password", "deleted", "app", "anything", "said"])
def test_devices_that_are_judged_together_are_so_by_what_is_true_then(change: str) -> None:
    """Records that were read and have changed before they were looked at."""

    async def run() -> None:
        world = AuthWorld(Random(1))
        outcomes: list[Any] = []

        async def judge() -> None:
            requests = [Request("http", "10.0.0.1", basic(f"d{n}@a:p{n}"), "dfu", b"") for n in (1, 2)]
            outcomes[:] = await world.auth.judge(requests, [world.auth.slots.digest(r.credentials) for r in requests])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.log_in_alone, "d1", "p1")
            await world.gates.settle()
            nursery.start_soon(judge)
            await world.gates.step()  # it is read; the next step tells what was found
            match change:
                case "password":
                    world.store.put("a", "d2", spec_of("p1"))
                case "deleted":
                    world.store.put("a", "d2", None)
                case "app":
                    world.store.put_app("a", {"core": {"disabled": True}})
                case "anything":
                    world.bus.publish(Missed())
                case _:
                    world.bus.publish(DeviceStateChanged("a", "d2"))
            await world.gates.settle()
        first, second = outcomes
        assert second is None and world.auth.known(basic("d2@a:p2")) is None
        assert isinstance(first, Present) == (change not in ("app", "anything"))
        if isinstance(first, Present):
            assert first.device == "d1"

    trio.run(run)


@MANY
@given(random=RANDOMS)
def test_no_session_is_accepted_or_kept_that_is_no_longer_true(slow_gates: list[Gates], random: Random) -> None:
    async def run() -> None:
        world = AuthWorld(random)
        slow_gates.append(world.gates)
        async with trio.open_nursery() as nursery:
            for _ in range(150):
                match random.randrange(8):
                    case 0 if world.logging_in < 4:
                        named, password = random.choice(("d1", "d2", "nick")), random.choice(("p1", "p2"))
                        nursery.start_soon(world.log_in, named, password, random.choice(("", "", "d1", "d2")))
                    case 1:
                        world.change()
                    case _:
                        await world.gates.step()
                world.check_what_is_remembered()
            await world.gates.settle()
            world.check_what_is_remembered()
        auth = world.auth
        assert not auth._sessions._under_way and not auth._sessions._cache._readings, "nothing is left behind"

    trio.run(run)


@MANY
@given(random=RANDOMS)
def test_no_pre_shared_key_is_kept_that_is_no_longer_the_devices(random: Random) -> None:
    async def run() -> None:
        world = AuthWorld(random)
        names = ("d1@a", "d2@a", "nick@a")

        def keys(identity: str) -> list[bytes]:
            named = identity.partition("@")[0]
            name = named if ("a", named) in world.store.specs else world.store.aliases.get(("a", named), "")
            spec = world.store.specs.get(("a", name), {})
            off = world.store.app_specs["a"].get("core", {}).get("disabled") or spec.get("core", {}).get("disabled")
            return [] if off else keys_of(spec, datetime.fromtimestamp(1.8e9, UTC), KEY)

        async def ask(identity: str) -> None:
            found = await world.auth.psk(identity)
            assert found is None or found in keys(identity)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                match random.randrange(4):
                    case 0:
                        nursery.start_soon(ask, random.choice(names))
                    case 1:
                        world.change()
                    case _:
                        await world.gates.step()
                for identity in names:
                    assert (kept := world.auth.psk_cached(identity)) is None or kept in keys(identity)
            await world.gates.settle()

    trio.run(run)


class NothingKept:
    """A store that is asked for the commands that wait, of which there are none, and for the app: its spec is the version."""

    def __init__(self, gates: Gates, controller: FakeController) -> None:
        self._gates = gates
        self._controller = controller

    async def app(self, name: str) -> App:
        await self._gates.pass_()
        found = App(Metadata(name), {"version": self._controller.of_app})
        await self._gates.pass_()
        return found

    async def documents(self, collection: str, **page: object) -> list[tuple[str, bytes]]:
        return []


class FakeController:
    """Decides by `version` alone; every status waits before and after it is looked at."""

    def __init__(self, gates: Gates, random: Random) -> None:
        self._gates = gates
        self._random = random
        self.version = 0
        self.of_app = 0
        self.poll_s = 60
        self.fetches = None  # nobody fetches

    async def status(
        self, app: str, device: str, status: Status, transport: str, *, patience_s: float = 0.0
    ) -> Command:
        await self._gates.pass_()
        version = self.version
        await self._gates.pass_()
        return self.command(version)

    def command(self, version: int) -> Command:
        if version % 2:
            return Command(Type.UPDATE, 0, str(version), package=bytes(16))
        return Command(Type.SYNC, 3600, str(version))

    async def take(self, asked: Sequence[Asked]) -> FakeTaken:
        await self._gates.pass_()
        return FakeTaken(self, self._gates, len(asked), stores=self._random.random() < 0.5)


class FakeTaken:
    """What statuses come to that were looked at just now: answers, or, where that is to be stored first, none until then."""

    def __init__(self, controller: FakeController, gates: Gates, number: int, *, stores: bool) -> None:
        self._controller = controller
        self._gates = gates
        self._version = controller.version
        self.answers: list[Command | None] = [None if stores else controller.command(self._version)] * number
        self.pending = list(range(number)) if stores else []

    async def store(self) -> None:
        await self._gates.pass_()
        if self._controller.version == self._version:
            self.answers = [self._controller.command(self._version)] * len(self.answers)

    def give_up(self) -> None:
        pass


class KnownAuth:
    """Lets everybody in; the credentials are none of this test's business."""

    def __init__(self) -> None:
        self.slots = Slots(16)

    def slot_of(self, digest: bytes) -> int:
        found = self.slots.find(digest)
        return found if found >= 0 else self.slots.keep(digest, "a", "d", 0.0)

    def known(self, credentials: Credentials, as_device: str = "") -> Session:
        return Session("a", "d")

    async def session(self, peer: str, credentials: Credentials, as_device: str = "") -> Session:
        return Session("a", "d")

    async def judge(self, requests: Sequence[Request], digests: Sequence[bytes]) -> list[Present]:
        return [Present("a", "d", digest) for digest in digests]


@MANY
@given(random=RANDOMS)
def test_no_change_is_missed_by_a_device_that_polls_or_waits(random: Random) -> None:
    async def run() -> None:
        gates, bus = Gates(random), Bus()
        controller = FakeController(gates, random)
        store: Any = NothingKept(gates, controller)
        endpoint = DeviceEndpoint(
            store,
            bus,
            controller,  # type: ignore[arg-type]  # the part of it that is asked
            KnownAuth(),  # type: ignore[arg-type]  # the same
            Commands(store, bus, 1, 60.0, trio.current_time),
            CONFIG,
            dialects=(),
            sinks=(),
            seen_s=900,
            now=lambda: 1.8e9,
        )
        body = encode_status(Status("1.0", bytes(32), "esp32c3", 2, 4160, 1 << 20))
        parked: list[tuple[Waiting, list[Reply]]] = []

        def request(timeout_s: float) -> Request:
            return Request("http", "10.0.0.1", basic("d@a:p"), "dfu", body, timeout_s=timeout_s)

        async def post(timeout_s: float) -> None:
            found = await endpoint.post(request(timeout_s))
            assert not isinstance(found, Reply) or found.code is Code.COMMAND
            if isinstance(found, Waiting):
                woken: list[Reply] = []
                found.listen(woken.append)
                parked.append((found, woken))

        async with trio.open_nursery() as nursery:
            await nursery.start(endpoint.run)
            for _ in range(50):
                match random.randrange(4):
                    case 0:
                        nursery.start_soon(post, random.choice((0.0, 300.0)))
                    case 1:
                        controller.version += 1
                        if random.randrange(2):
                            bus.publish(DeviceChanged("a", "d"))
                        else:
                            controller.of_app = controller.version
                            bus.publish(AppChanged("a"))
                    case 2 if not random.randrange(4):
                        bus.publish(AppChanged("a"))  # nothing that concerns it
                    case _:
                        await gates.step()
                found = endpoint.quick(request(0.0))
                if isinstance(found, Reply):
                    assert decode_command_untrusted(found.body).version == str(controller.version)
            await gates.settle()
            if controller.version % 2:
                assert all(woken for _, woken in parked), "there is something to do, and somebody waits on"
                assert not endpoint.parked
            nursery.cancel_scope.cancel()

    trio.run(run)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "walk",
    [
        test_no_session_is_accepted_or_kept_that_is_no_longer_true,
        test_no_pre_shared_key_is_kept_that_is_no_longer_the_devices,
        test_no_change_is_missed_by_a_device_that_polls_or_waits,
    ],
    ids=lambda walk: walk.__name__,
)
def test_the_same_for_long(walk: Any, slow_gates: list[Gates]) -> None:
    inner = walk.hypothesis.inner_test
    wanted = {"slow_gates": slow_gates} if "slow_gates" in inspect.signature(inner).parameters else {}
    settings(MANY, max_examples=5000)(given(random=RANDOMS)(inner))(**wanted)
