"""A transport with one fault is caught by TransportContainment: each class here is the transport of docs/plugins.md with one."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from dfud_http.config import HttpConfig
from dfud_http.transport import HttpTransport

from dfud.api import Transport
from dfud.testing.fake_endpoint import FakeEndpoint, FakeWaiting
from dfud.testing.peer import TransportPeer
from dfud.testing.transport import TransportConformance, TransportContainment
from tests.plugins.documents import blocks, module_of
from tests.plugins.http.test_conformance import HttpPeer
from tests.plugins.test_outside import FramesPeer
from tests.testing.caught import catches

frames: Any = module_of("plugins.md", "dfud_frames", blocks("plugins.md", "python")[0])


class Fragile(frames.FramesTransport):
    """What one connection ends with ends all of them."""

    async def _serve(self, stream: trio.SocketStream, endpoint: FakeEndpoint) -> None:
        try:
            await self._talk(stream, endpoint)
        finally:
            await trio.aclose_forcefully(stream)


class DiesOfAHangUp(Fragile):
    """A peer that goes in the middle ends all of them."""

    async def _talk(self, stream: trio.SocketStream, endpoint: FakeEndpoint) -> None:
        rest = b""
        while data := await stream.receive_some(65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                try:
                    frame = frames.read_frame_untrusted(line)
                except ValueError:
                    return
                await stream.send_all(await self._answer(frame, endpoint))


class DiesOfRubbish(Fragile):
    """What cannot be read ends all of them."""

    async def _talk(self, stream: trio.SocketStream, endpoint: FakeEndpoint) -> None:
        async for data in stream:
            for line in data.split(b"\n"):
                if line:
                    frame = frames.msgspec.json.decode(line, type=frames.Frame)
                    await stream.send_all(await self._answer(frame, endpoint))


class OneAtATime(frames.FramesTransport):
    """Who stalls keeps everybody waiting."""

    async def _serve(self, stream: trio.SocketStream, endpoint: FakeEndpoint) -> None:
        if not hasattr(self, "_only"):
            self._only = trio.Lock()
        async with self._only:
            await super()._serve(stream, endpoint)


class OnlyOnce(frames.FramesTransport):
    """It cannot be run a second time."""

    async def run(self, endpoint: FakeEndpoint, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        assert not hasattr(self, "_ran"), "once only"
        self._ran = True
        await super().run(endpoint, task_status=task_status)


BROKEN = [
    (Fragile, "test_an_exception_behind_it_costs_one_request", (RuntimeError("a bug"), False)),
    (DiesOfAHangUp, "test_peers_that_hang_up_in_the_middle_of_a_request_cost_nobody", ()),
    (DiesOfAHangUp, "test_peers_that_hang_up_while_they_are_answered_cost_nobody", ()),
    (DiesOfRubbish, "test_rubbish_costs_its_own_connection_at_most", ()),
    (OneAtATime, "test_peers_that_stall_keep_nobody_waiting", ()),
    (OneAtATime, "test_peers_that_never_read_their_answers_keep_nobody_waiting", ()),
]


async def run(
    kind: type[TransportContainment], transport: Transport, peer: TransportPeer, test: str, *more: Any
) -> None:
    """Run one test of the kit as pytest would: on a transport that runs, which it may end."""
    endpoint = FakeEndpoint()
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(transport.run, endpoint)
        suite = kind()
        suite.answer_time_s = 3.0
        if more:
            error, quickly = more
            await suite.test_an_exception_behind_it_costs_one_request(urls[0], endpoint, peer, error, quickly)
        elif test == "test_a_parked_peer_that_hangs_up_is_let_go":
            await getattr(suite, test)(urls[0], endpoint, peer)
        else:
            await getattr(suite, test)(urls[0], peer)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("kind", "test", "more"), BROKEN, ids=lambda v: getattr(v, "__name__", str(v)[:60]))
async def test_a_fault_is_caught(kind: Any, test: str, more: tuple[Any, ...]) -> None:
    for broken in (kind, frames.FramesTransport):
        transport = broken(frames.FramesConfig(port=0))
        faults = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, RuntimeError)
        caught = await catches(
            run, TransportContainment, transport, FramesPeer(), test, *more, also=(*faults, Exception)
        )
        assert caught == (broken is kind)


async def test_one_that_runs_only_once_is_caught() -> None:
    for broken in (OnlyOnce, frames.FramesTransport):
        transport = broken(frames.FramesConfig(port=0))
        test = TransportContainment().test_it_can_be_run_again_after_it_has_failed
        assert await catches(test, transport, FakeEndpoint(), FramesPeer()) == (broken is OnlyOnce)


async def test_one_that_keeps_a_place_for_a_peer_that_has_gone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    test = "test_a_parked_peer_that_hangs_up_is_let_go"
    peer = HttpPeer()
    assert not await catches(run, TransportConformance, HttpTransport(HttpConfig(port=0)), peer, test)
    monkeypatch.setattr(FakeWaiting, "cancel", lambda self: None)  # as if the transport never said so
    assert await catches(run, TransportConformance, HttpTransport(HttpConfig(port=0)), peer, test)
