"""Everybody changes everything at once, with somebody else between any two steps: what the registry answers is so.

Each request has a user of its own, so that its audit entries tell what it did, and in which order.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfud.api import (
    App,
    Bus,
    DeleteDevice,
    DeleteDocument,
    DeleteFirmware,
    Device,
    DeviceChanged,
    FirmwareChanged,
    Metadata,
    PutApp,
    PutDevice,
    PutDocument,
    PutFirmware,
    RequestError,
    Rollout,
    SetFirmware,
)
from dfud.model.credentials import verify
from dfud.model.rollout import ROLLOUTS, RolloutStatus
from dfud.model.selectors import EVERYTHING
from dfud.registry import audit, guards, users
from dfud.registry.audit import AuditEntry
from dfud.registry.claims import CLAIMS, Claims
from dfud.registry.firmware import FirmwareRegistry, Upload
from dfud.registry.naming import aliases_of
from dfud.registry.registry import Registry
from dfud.registry.users import Forbidden, Token, Users
from dfud.registry.writing import Precondition
from tests.endpoint.scheduled import Gates
from tests.registry.desk import ADMIN, KEY, T0
from tests.registry.scheduled import GatedRegistryStore, set_firmware

# A seed is printed when one fails: every choice of the test comes out of it.
RANDOMS = st.integers(0, 1 << 48).map(Random)
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = ("d1", "d2", "d3")
VERSIONS = ("1.0", "1.1", "1.2")
AT_ONCE = 6
TOKENS_MAX, CLAIMS_MAX = 3, 2
STEPS = 400


class Story:
    """answered: each request that was not refused, and what it was given. heard: how much was stored when a change was last told."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.gates = Gates(random)
        self.bus = Bus()
        self.store = GatedRegistryStore(self.gates)
        self.registry = Registry(self.store, self.bus, KEY, lambda: T0)
        # Two, so that not only who takes turns is told apart.
        self.firmware = [FirmwareRegistry(self.store, self.bus, lambda: T0, 1 << 20) for _ in range(2)]
        self.users, self.other_users = Users(self.store), Users(self.store)
        self.claims = [Claims(self.registry, self.store, KEY, lambda: T0) for _ in range(2)]
        self.answered: dict[str, Any] = {}
        self.refused: set[str] = set()
        self.kinds: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        self.under_way = 0
        self.number = 0
        self.heard: dict[tuple[str, str], int] = {}
        self.bus.subscribe(DeviceChanged, lambda e: self._heard("device", e.device))
        self.bus.subscribe(FirmwareChanged, lambda e: self._heard("firmware", e.firmware.version))

    def _heard(self, kind: str, name: str) -> None:
        self.heard[kind, name] = len(self.store.committed)

    # Requests

    async def request(self, by: str) -> None:
        self.under_way += 1
        asked = self.random.choice(REQUESTS)
        self.kinds[by] = asked.__name__
        try:
            self.answered[by] = await asked(self, by)
        except (RequestError, Forbidden):
            self.refused.add(by)
        finally:
            self.under_way -= 1

    def name(self) -> str:
        return self.random.choice(NAMES)

    def spec(self) -> dict[str, Any]:
        return {"alias": [self.random.choice(("x", "y", *NAMES))]} if self.random.random() < 0.3 else {}

    async def create(self, by: str) -> Any:
        return await self.registry.create_device("a", Device(Metadata(self.name()), self.spec()), by)

    async def delete(self, by: str) -> Any:
        await self.registry.delete_device("a", self.name(), Precondition(), by)

    async def put(self, by: str) -> Any:
        name = self.name()
        await self.registry.update_device("a", name, Device(Metadata(name, labels={"by": by}), self.spec()), by)

    async def put_what_was_read(self, by: str) -> Any:
        read = (await self.registry.device("a", self.name())).metadata
        metadata = msgspec.structs.replace(read, labels={"by": by})
        await self.registry.update_device("a", read.name, Device(metadata, self.spec()), by)
        return read.resource_version

    async def want(self, by: str) -> Any:
        await self.registry.set_firmware("a", self.name(), {"version": self.random.choice(VERSIONS)}, by)

    async def rotate(self, by: str) -> Any:
        self.secrets[by] = await self.registry.new_secret("a", self.name(), by)

    async def group(self, by: str) -> Any:
        wanted = {"version": self.random.choice(VERSIONS)}
        return await self.registry.groups.accept("a", EVERYTHING, "", wanted, by)

    async def publish(self, by: str) -> Any:
        async def body() -> AsyncIterator[bytes]:
            yield self.random.choice((b"one", b"two"))

        upload = Upload(self.random.choice(VERSIONS), "x", self.random.choice((None, None, 7)), "raw")
        return await self.random.choice(self.firmware).publish("a", upload, body(), by)

    async def withdraw(self, by: str) -> Any:
        await self.firmware[0].delete("a", self.random.choice(VERSIONS), by)

    async def signing(self, by: str) -> Any:
        keys = [base64.b64encode(k.public_key().public_bytes_raw()).decode() for k in KEYS if self.random.random() < 0.5]
        spec: dict[str, Any] = {"signing": {"mode": "optional", "keys": keys}}
        if self.random.random() < 0.5:
            spec["firmware"] = {"version": self.random.choice(VERSIONS)}
        given = App(Metadata("a", labels={"by": by}), spec)
        await self.registry.update_app("a", given, by)

    async def new_token(self, by: str) -> Any:
        at = self.random.choice((self.users, self.other_users))
        await at.create("someone", {"*": "admin"}, by=by, now_s=T0, days=1, most=TOKENS_MAX)

    async def claim(self, by: str) -> Any:
        await self.random.choice(self.claims).create("a", by, most=CLAIMS_MAX)

    async def end_claim(self, by: str) -> Any:
        there = sorted(k.partition("/")[2] for c, k in self.store.tables.documents if c == CLAIMS)
        if there:
            await self.claims[0].delete("a", self.random.choice(there), by)

    async def roll_out(self, by: str) -> Any:
        """As the route and the controller make one."""
        version = self.random.choice(VERSIONS)
        if await self.store.firmware("a", version) is not None:
            made = msgspec.json.encode(Rollout(Metadata(by), {"firmware": version}, RolloutStatus()))
            put = PutDocument(ROLLOUTS, f"a/{by}", made, create=True)
            await self.store.commit([put, guards.touch(guards.wishes_of("a")), audit.entry(T0, by, "create-rollout", f"a/{by}")])

    async def end_rollout(self, by: str) -> Any:
        there = sorted(k for c, k in self.store.tables.documents if c == ROLLOUTS)
        if there:
            gone = DeleteDocument(ROLLOUTS, self.random.choice(there))
            await self.store.commit([gone, audit.entry(T0, by, "delete-rollout", gone.key)])

    async def end_token(self, by: str) -> Any:
        there = self.tokens()
        if there:
            who = msgspec.structs.replace(ADMIN, name=by)
            await self.users.delete(self.random.choice(sorted(there)), who, T0)

    # What is so

    def tokens(self) -> dict[str, Token]:
        found = self.store.tables.documents.items()
        return {k: msgspec.json.decode(v, type=Token) for (c, k), v in found if c == users.COLLECTION}

    def check_now(self) -> None:
        """What holds between any two steps."""
        devices = self.store.tables.devices
        owners: dict[str, str] = {}
        for (_, name), device in devices.items():
            for known in {name, *aliases_of(device.spec)}:
                assert owners.setdefault(known, name) == name, f"two devices are known as {known}"
        assert sum(token.user == "someone" for token in self.tokens().values()) <= TOKENS_MAX
        assert sum(c == CLAIMS for c, _ in self.store.tables.documents) <= CLAIMS_MAX
        assert any(token.roles == {"*": "admin"} for token in self.tokens().values()), "nobody is admin"

    def check_all(self) -> None:
        """What holds when all requests have been answered."""
        self.check_record()
        self.check_devices()
        self.check_firmware()
        for number, changes in enumerate(self.store.committed, start=1):
            for change in changes:
                for key in _told_of(change):
                    assert self.heard.get(key, 0) >= number, f"{key} changed and nobody heard"

    def entries(self) -> list[tuple[AuditEntry, list[Any]]]:
        """Return what is on record in the order in which it was stored, with what was stored beside it."""
        found = []
        for changes in self.store.committed:
            told = [c for c in changes if isinstance(c, PutDocument) and c.collection == audit.COLLECTION]
            assert len(told) == 1, "each commit is on record, once"
            found.append((msgspec.json.decode(told[0].value, type=AuditEntry), [c for c in changes if c is not told[0]]))
        return found

    def check_record(self) -> None:
        deeds: dict[str, int] = {}
        for entry, _ in self.entries():
            deeds[entry.by] = deeds.get(entry.by, 0) + 1
        for by in self.refused:
            assert by not in deeds, f"{by} was refused and changed something"
        assert all(number == 1 or self.kinds[by] == "group" for by, number in deeds.items() if by in self.kinds)

    def check_devices(self) -> None:
        """Replayed in the order of the record, each request finds what the one before left."""
        replayed: dict[str, Device] = {}
        good: dict[str, list[str]] = {}
        for entry, changes in self.entries():
            for change in changes:
                if isinstance(change, DeleteDevice):
                    del replayed[change.device]
                    good.pop(change.device, None)
                elif isinstance(change, SetFirmware):
                    for name in [name for name in change.devices if name in replayed]:
                        replayed[name] = set_firmware(replayed[name], change.firmware, change.resource_version)
                elif isinstance(change, PutDevice):
                    device, old = change.device, replayed.get(change.device.name)
                    if self.kinds[entry.by] == "want":
                        assert old is not None
                        mine = {**old.spec, "firmware": device.spec.get("firmware")}
                        assert (device.spec, device.metadata.labels) == (mine, old.metadata.labels), "a change was lost"
                    elif self.kinds[entry.by] == "rotate":
                        assert old is not None
                        others = {k: v for k, v in device.spec.items() if k != "authentication"}
                        assert others == {k: v for k, v in old.spec.items() if k != "authentication"}
                        good[device.name] = [*good.get(device.name, []), entry.by][-2:]
                    else:
                        good.pop(device.name, None)
                    read = self.answered.get(entry.by)
                    if self.kinds[entry.by] == "put_what_was_read":
                        assert old is not None and old.metadata.resource_version == read, "it was not what was read"
                    replayed[device.name] = device
        stored = {name: device for (_, name), device in self.store.tables.devices.items()}
        assert replayed == stored
        for name, those in good.items():
            for by in those:
                assert by not in self.secrets or verify(stored[name].spec, None, self.secrets[by], KEY), by

    def check_firmware(self) -> None:
        there: dict[str, Any] = {}
        wishes: dict[str, str] = {}  # of devices, rollouts and the app
        for entry, changes in self.entries():
            for change in changes:
                match change:
                    case PutDevice(device):
                        wishes[f"device {device.name}"] = device.spec.get("firmware", {}).get("version", "")
                    case SetFirmware(_, names, firmware):
                        wished = (firmware or {}).get("version", "")
                        wishes |= {f"device {name}": wished for name in names if f"device {name}" in wishes}
                    case DeleteDevice(_, name):
                        wishes.pop(f"device {name}")
                    case PutApp(app):
                        wishes["app"] = app.spec.get("firmware", {}).get("version", "")
                    case PutDocument(collection, key, value) if collection == ROLLOUTS:
                        wishes[key] = msgspec.json.decode(value, type=Rollout).spec["firmware"]
                    case DeleteDocument(collection, key) if collection == ROLLOUTS:
                        del wishes[key]
                if isinstance(change, DeleteFirmware):
                    assert change.version not in wishes.values(), f"deleted, and wanted: {wishes}"
                    del there[change.version]
                elif isinstance(change, PutFirmware):
                    held = there.get(change.firmware.version)
                    assert held is None or held.sha256 == change.firmware.sha256, "another image took its place"
                    assert (held is None) == (entry.what == "publish"), "what was said to be replaced was deleted"
                    if entry.what == "publish" and change.firmware.sequence != 7:
                        assert all(f.sequence < change.firmware.sequence for f in there.values()), "a number twice"
                    there[change.firmware.version] = change.firmware
        assert there == {version: f for (_, version), f in self.store.tables.firmware.items()}


KEYS = [Ed25519PrivateKey.generate() for _ in range(2)]
REQUESTS: list[Callable[[Story, str], Awaitable[Any]]] = [
    Story.create,
    Story.create,
    Story.delete,
    Story.put,
    Story.put_what_was_read,
    Story.want,
    Story.want,
    Story.rotate,
    Story.group,
    Story.publish,
    Story.publish,
    Story.withdraw,
    Story.signing,
    Story.new_token,
    Story.claim,
    Story.end_claim,
    Story.roll_out,
    Story.end_rollout,
    Story.end_token,
    Story.end_token,
]


def _told_of(change: Any) -> list[tuple[str, str]]:
    match change:
        case PutDevice(device):
            return [("device", device.name)]
        case SetFirmware(_, names):
            return [("device", name) for name in names]
        case DeleteDevice(_, name):
            return [("device", name)]
        case PutFirmware(firmware):
            return [("firmware", firmware.version)]
        case DeleteFirmware(_, version):
            return [("firmware", version)]
    return []


async def _begin(story: Story) -> None:
    await story.registry.create_app(App(Metadata("a"), {"signing": {"mode": "optional"}}), "begin")
    await story.users.create("admin", {"*": "admin"}, by="begin too", now_s=T0, days=1)


async def tell(random: Random) -> Story:
    story = Story(random)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_begin, story)
        await story.gates.settle()
        nursery.start_soon(story.registry.groups.run)
        for _ in range(STEPS):
            if story.under_way < AT_ONCE and random.random() < 0.3:
                story.number += 1
                nursery.start_soon(story.request, f"request {story.number}")
            await story.gates.step()
            story.check_now()
        await story.gates.settle()
        nursery.cancel_scope.cancel()
    story.check_all()
    return story


def test_requests_come_in_between_and_most_are_answered() -> None:
    """The test below would pass if everything were refused, or nothing happened at the same time."""
    stories = [trio.run(tell, Random(seed)) for seed in range(4)]
    kinds = {entry.what for story in stories for entry, _ in story.entries()}
    assert {"create", "delete", "update", "update-group", "group-updated", "rotate-secret", "publish", "delete-token"} <= kinds
    answered, refused = (sum(len(getattr(s, what)) for s in stories) for what in ("answered", "refused"))
    assert answered > refused > 0


@MANY
@given(random=RANDOMS)
def test_what_the_registry_answers_is_so_whoever_comes_in_between(random: Random) -> None:
    trio.run(tell, random)
