"""Several processes, one OSCORE context: each request is acted upon once, whichever process it reaches, and the device goes on."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import msgspec
import pytest
import trio
import trio.lowlevel
import trio.testing
from dfud_coap.config import CoapConfig
from dfud_coap.message import CON, Code, Message, Option, decode_untrusted, encode
from dfud_coap.oscore import EPOCH_S, Contexts, Header
from dfud_coap.ownership import KEPT_S, SLOTS, SWEEP_S, Owned, Ownership
from dfud_coap.transport import CoapTransport

from dfud.api import Shared
from dfud.testing.transport import FakeEndpoint
from tests.plugins.coap.hub import Hub, Member
from tests.plugins.coap.oscoredevice import Device, echo_of_inner
from tests.plugins.coap.world import CHUNK, IDENTITY, KEY, LIMIT_S, PACKAGE, until


class SharedEndpoint(FakeEndpoint):
    def __init__(self, member: Member) -> None:
        super().__init__(packages={PACKAGE: [b"first", CHUNK]}, keys={IDENTITY: KEY})
        self.member = member

    def shared(self, transport: str) -> Shared:
        return self.member


class Process:
    """One dfud's transport, and its end by a kill."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.scope = trio.CancelScope()
        self.begin()

    def begin(self) -> None:
        self.endpoint = SharedEndpoint(self.hub.member())
        self.transport = CoapTransport(CoapConfig(port=0))
        self.url = ""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as self.scope:
            async with trio.open_nursery() as nursery:
                urls = await nursery.start(self.transport.run, self.endpoint)
                self.url = urls[0]
                await until(lambda: self.me)
                task_status.started()
                await trio.sleep_forever()

    @property
    def me(self) -> str:
        server = self.transport._server
        return server.securing.ownership.me if server is not None and server.securing.ownership is not None else ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


class World:
    """`sent`: all that the device sent, as it was sent. `acted`: how often each body was acted upon, by any process."""

    def __init__(self, hub: Hub, processes: list[Process], sock: trio.socket.SocketType) -> None:
        self.hub, self.processes, self._sock = hub, processes, sock
        self.everybody = [process.endpoint for process in processes]
        self.device = Device(boot=1)
        self.sent: list[bytes] = []
        self.challenges = 0
        self._message_id = 0

    @property
    def acted(self) -> Counter[bytes]:
        return Counter(r.body for process in self.everybody for r in process.requests)

    async def exchange(self, process: Process, data: bytes, patience_s: float = LIMIT_S) -> bytes | None:
        """Send a datagram, again every second as a device does; return what answers it, None if nothing does."""
        asked = decode_untrusted(data)
        with trio.move_on_after(patience_s):
            while True:
                await self._sock.sendto(data, ("127.0.0.1", process.port))
                with trio.move_on_after(1.0):
                    while True:
                        answer, _ = await self._sock.recvfrom(2000)
                        found = decode_untrusted(answer)
                        own = found.type == CON or found.message_id == asked.message_id
                        if found.code and found.token == asked.token and own:
                            return bytes(answer)
        return None

    def protected(self, body: bytes, *options: tuple[int, bytes]) -> bytes:
        self._message_id += 1
        uri = [(int(Option.URI_PATH), part) for part in (b"v1", b"dfu")]
        message = Message(CON, Code.POST, self._message_id, self._message_id.to_bytes(4, "big"), [*uri, *options], body)
        data = encode(self.device.protect_request(message))
        self.sent.append(data)
        return data

    async def say(
        self, process: Process, body: bytes, other: Process | None = None, patience_s: float = LIMIT_S
    ) -> Message | None:
        """Say something as a device does: once more with the Echo, if it is asked for one. other: who gets that."""
        answer = await self.exchange(process, self.protected(body), patience_s)
        found = self._open(answer) if answer is not None else None
        if found is not None and found.code == Code.UNAUTHORIZED:
            self.challenges += 1
            answer = await self.exchange(other or process, self.protected(body, echo_of_inner(found)), patience_s)
            found = self._open(answer) if answer is not None else None
        return found

    def _open(self, answer: bytes) -> Message | None:
        """Return what the server said, None if it was not protected."""
        if decode_untrusted(answer).first(Option.OSCORE) is None:
            return None
        return self.device.open(answer)

    async def replay_all(self) -> None:
        """Send all that was ever sent to everybody again, under other message IDs, as somebody else would."""
        stranger = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
        with stranger:
            for data in self.sent:
                for process in self.processes:
                    self._message_id += 1
                    again = data[:2] + self._message_id.to_bytes(2, "big") + data[4:]
                    await stranger.sendto(again, ("127.0.0.1", process.port))
                await trio.sleep(0.005)
            await trio.sleep(0.1)


@asynccontextmanager
async def running(size: int = 2) -> AsyncIterator[World]:
    hub = Hub()
    processes = [Process(hub) for _ in range(size)]
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:
            for process in processes:
                await nursery.start(process.run)
            world = World(hub, processes, sock)
            with trio.fail_after(LIMIT_S):
                yield world
            nursery.cancel_scope.cancel()


def body(found: Message | None) -> bytes:
    assert found is not None and found.code == Code.CONTENT, found
    return found.payload


async def test_a_device_goes_from_one_to_the_other_and_notices_nothing() -> None:
    async with running() as w:
        one, other = w.processes
        for number, process in enumerate([one, one, other, one, other, other, one]):
            assert body(await w.say(process, b"%d" % number)) == b"%d" % number
        assert w.challenges == 1, "only at the beginning"
        assert set(w.acted.values()) == {1}
        await w.replay_all()
        assert set(w.acted.values()) == {1}
        assert body(await w.say(other, b"goes on")) == b"goes on"
        assert len(set(w.device.ivs)) == len(w.device.ivs), "a nonce was used twice"


async def test_an_echo_of_one_is_good_at_the_other_and_once() -> None:
    async with running() as w:
        one, other = w.processes
        assert body(await w.say(one, b"first", other)) == b"first"
        assert w.challenges == 1
        await w.replay_all()
        assert w.acted == {b"first": 1}
        assert body(await w.say(one, b"second")) == b"second" and w.challenges == 1


async def test_of_one_request_at_two_processes_at_once_one_is_acted_upon() -> None:
    async with running(3) as w:
        for number in range(5):
            assert body(await w.say(w.processes[number % 3], b"a%d" % number)) == b"a%d" % number
            data = w.protected(b"both %d" % number)
            async with trio.open_nursery() as nursery:
                for process in w.processes:
                    nursery.start_soon(w._sock.sendto, data, ("127.0.0.1", process.port))
            with trio.fail_after(LIMIT_S):
                while not w.acted[b"both %d" % number]:
                    await trio.sleep(0.002)
            await trio.sleep(0.05)
        assert set(w.acted.values()) == {1}


async def test_when_its_process_dies_a_device_proves_itself_once_and_goes_on() -> None:
    async with running() as w:
        one, other = w.processes
        for number in range(5):
            body(await w.say(one, b"%d" % number))
        assert w.challenges == 1
        one.scope.cancel()
        await trio.lowlevel.checkpoint()
        w.processes.remove(one)
        w.hub.members.remove(one.endpoint.member)
        await w.replay_all()  # what proved that it was fresh proves nothing any more
        await until(lambda: not other.transport._server._work.count)  # type: ignore[union-attr]
        assert set(w.acted.values()) == {1}
        assert body(await w.say(other, b"after")) == b"after" and w.challenges == 2
        await w.replay_all()
        assert set(w.acted.values()) == {1}
        assert body(await w.say(other, b"later")) == b"later" and w.challenges == 2


async def test_while_nobody_hears_nothing_is_taken_twice() -> None:
    async with running() as w:
        one, other = w.processes
        body(await w.say(one, b"first"))
        w.hub.lost = True
        found = await w.say(other, b"unheard")
        assert found is None or found.code == Code.UNAVAILABLE  # told without protection, or with
        await w.replay_all()
        assert set(w.acted.values()) == {1}, "what was turned away may come again, once"
        assert body(await w.say(one, b"second")) == b"second"
        w.hub.lost = False
        assert body(await w.say(other, b"third")) == b"third" and w.challenges == 1


async def test_who_may_have_missed_a_question_asks_the_store_first() -> None:
    async with running() as w:
        one, other = w.processes
        body(await w.say(one, b"first"))
        body(await w.say(other, b"second"))
        # As if the first had never let go of it: what the store says counts.
        server = one.transport._server
        assert server is not None
        (context,) = server.securing.contexts._known.values()
        context.lent = False
        one.endpoint.member.missed()
        await w.replay_all()
        assert set(w.acted.values()) == {1}
        w.hub.away = True
        assert (await w.say(one, b"away")) is None or w.acted[b"away"] == 0
        w.hub.away = False
        assert body(await w.say(one, b"third")) == b"third"


async def test_who_loses_its_slot_forgets_all_and_takes_another_one() -> None:
    async with running() as w:
        one, other = w.processes
        body(await w.say(one, b"first"))
        before = one.me
        one.endpoint.member.lose_leads()
        await until(lambda: one.me and one.me != before)
        assert body(await w.say(one, b"second")) == b"second" and w.challenges == 2
        assert body(await w.say(other, b"third")) == b"third" and w.challenges == 2
        await w.replay_all()
        assert set(w.acted.values()) == {1}


async def test_a_new_holder_of_a_slot_uses_no_number_of_the_one_before() -> None:
    hub = Hub()
    used: list[int] = []
    for _ in range(3):
        process = Process(hub)
        async with trio.open_nursery() as nursery:
            await nursery.start(process.run)
            server = process.transport._server
            assert server is not None
            contexts = server.securing.contexts
            header = Header(b"\0", b"\1" * 8 + b"d@a", "d@a")
            made = contexts.derive(header, KEY, EPOCH_S + 1000.0)  # a clock that is far behind
            assert made is None or made.sequence % SLOTS == contexts.slot
            wall = server.securing.wall()
            made = contexts.derive(header, KEY, wall)
            assert made is not None and made.sequence % SLOTS == contexts.slot
            used.append(made.sequence)
            nursery.cancel_scope.cancel()
        # All others are taken, so the next one has the same slot.
        number = process.transport._server.securing.contexts.slot  # type: ignore[union-attr]
        for slot in range(SLOTS):
            if slot != number:
                hub.leads[f"slot.{slot}"] = cast(trio.Lock, TakenForEver())
    assert used[0] + 100_000 < used[1] and used[1] + 100_000 < used[2]


class TakenForEver:
    """A lead that somebody else has."""

    async def __aenter__(self) -> None:
        await trio.sleep_forever()

    async def __aexit__(self, *error: object) -> None:
        raise AssertionError


async def test_what_is_over_is_removed_from_the_store(autojump_clock: trio.testing.MockClock) -> None:
    hub = Hub()
    async with trio.open_nursery() as nursery:
        contexts = Contexts(10)
        ownership = Ownership(hub.member(), contexts, nursery.start_soon, lambda: EPOCH_S + 1e9 + trio.current_time())
        nursery.start_soon(ownership.run)
        while not ownership.me:
            await trio.sleep(0.01)
        header = Header(b"\0", b"\1" * 8 + b"d@a", "d@a")
        stale, fresh = (
            msgspec.json.encode(Owned("7.gone", 3, EPOCH_S + 1e9 + at_s)) for at_s in (-SWEEP_S, 2 * SWEEP_S)
        )
        hub.values |= {"context/00": stale, "context/01": fresh}
        context = contexts.derive(header, KEY, EPOCH_S + 1e9)
        assert context is not None
        hub.values[f"context/{header.id_context.hex()}"] = msgspec.json.encode(Owned(ownership.me, 1, 0.0))
        contexts.establish(context, 0.0)
        contexts.forget(header.id_context)
        await trio.sleep(KEPT_S / 2)
        assert f"context/{header.id_context.hex()}" in hub.values
        await trio.sleep(SWEEP_S + KEPT_S)
        assert [key for key in hub.values if key.startswith("context")] == ["context/01"]
        nursery.cancel_scope.cancel()


async def test_a_long_walk_with_replays_losses_and_deaths() -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")  # shown when it fails
    rng = random.Random(seed)
    async with running(3) as w:
        answered = 0
        for number in range(40):
            process = rng.choice(w.processes)
            w.hub.lost = rng.random() < 0.1
            said = b"%d" % number
            found = await w.say(process, said, rng.choice(w.processes), patience_s=2.0)
            answered += found is not None and found.code == Code.CONTENT
            w.hub.lost = False
            if rng.random() < 0.15:
                rng.choice(w.processes).endpoint.member.lose_leads()
                await until(lambda: all(p.me for p in w.processes))
            if rng.random() < 0.1:
                rng.choice(w.processes).endpoint.member.missed()
            if rng.random() < 0.2:
                again = rng.choice(w.sent)
                w._message_id += 1
                data = again[:2] + w._message_id.to_bytes(2, "big") + again[4:]
                await w._sock.sendto(data, ("127.0.0.1", rng.choice(w.processes).port))
        await w.replay_all()
        assert max(w.acted.values()) == 1, f"seed {seed}: {[b for b, n in w.acted.items() if n > 1]}"
        assert answered > 10, f"seed {seed}: {answered} of 40"
        assert len(set(w.device.ivs)) == len(w.device.ivs), f"seed {seed}: a nonce was used twice"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfud_coap.ownership.ANSWER_S", 0.2)
    monkeypatch.setattr("dfud_coap.ownership.TRY_S", 0.3)
