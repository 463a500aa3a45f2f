"""The dialect's answers, with a session that keeps what it is told."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from dfud_drogue.cbor import decode_untrusted, encode
from dfud_drogue.config import DrogueConfig
from dfud_drogue.dialect import AjourDialect

from dfud.api import Actual, Code, Credentials, Desired, DialectSession, Firmware, PeerError, Request

IMAGE = bytes(range(256)) * 10 + b"end"


def firmware(version: str = "2") -> Firmware:
    return Firmware(
        app="app1",
        version=version,
        hardware="x",
        sequence=1,
        size_bytes=len(IMAGE),
        sha256=hashlib.sha256(IMAGE).hexdigest(),
        manifest=b"",
        kind="raw",
    )


class Session(DialectSession):
    app, device = "app1", "dev1"

    def __init__(self) -> None:
        self.published = {"2": firmware("2"), "3": firmware("3")}
        self.wanted = "2"
        self.send = True
        self.reports: list[tuple[Actual, int | None, str, bool]] = []

    async def report(
        self, actual: Actual, *, sha256: str = "", offset: int | None = None, version: str = "", swap: bool = False
    ) -> bool:
        self.reports.append((actual, offset, version, swap))
        return self.send

    async def target(self, *, pinned_version: str = "") -> tuple[Desired, Firmware | None]:
        found = self.published.get(pinned_version) or self.published.get(self.wanted)
        return Desired(self.wanted), found

    async def image(self, firmware: Firmware, offset: int, size: int) -> bytes:
        return IMAGE[offset : offset + size]

    def poll_s(self) -> int:
        return 60


async def ask(session: Session, status: dict[int, Any], block_max: int = 1024) -> dict[int, Any]:
    dialect = AjourDialect(DrogueConfig(block_max=block_max))
    body = encode(status)
    assert dialect.recognises("", body)
    request = Request("http", "127.0.0.1", Credentials(), "dfu", body)
    reply = await dialect.answer(request, session)
    assert (reply.code, reply.command) == (Code.COMMAND, "dfu")
    found: dict[int, Any] = decode_untrusted(reply.body)
    return found


@pytest.mark.parametrize(("mtu", "block"), [(256, 256), (None, 512), (4096, 1024), (1023, 1020), (3, 3), (0, 512)])
async def test_an_image_goes_over_in_blocks_that_fit_and_ends_in_a_swap(mtu: int | None, block: int) -> None:
    session, got = Session(), b""
    for _ in range(2000):
        status: dict[int, Any] = {0: b"1", 1: mtu, 2: 7}
        if got:
            status[3] = {0: b"2", 1: len(got)}
        answer = await ask(session, status)
        if 3 in answer:
            break
        write = answer[2]
        assert (write[0], write[1], write[2]) == (b"2", 7, len(got))
        assert len(write[3]) == min(block, len(IMAGE) - len(got))
        got += write[3]
    assert answer == {3: {0: b"2", 1: 7, 2: hashlib.sha256(IMAGE).digest()}}
    assert got == IMAGE
    assert session.reports[-1][1:] == (len(IMAGE), "2", True)


async def test_a_device_that_runs_the_target_is_always_told_so() -> None:
    session = Session()
    session.send = False
    assert await ask(session, {0: b"2"}) == {1: {0: b"2", 1: None, 2: 60}}


async def test_the_target_stays_while_it_is_being_written() -> None:
    session = Session()
    session.wanted = "3"
    answer = await ask(session, {0: b"1", 1: 256, 3: {0: b"2", 1: 512}})
    assert (answer[2][0], answer[2][2]) == (b"2", 512)


async def test_a_device_stops_writing_when_what_it_runs_or_nothing_is_wanted() -> None:
    session = Session()
    session.wanted = "1"
    session.published["1"] = firmware("1")
    assert 1 in await ask(session, {0: b"1", 1: 256, 3: {0: b"2", 1: 512}})
    session.wanted = "nothing"
    assert 0 in await ask(session, {0: b"1", 1: 256, 3: {0: b"2", 1: 512}})
    assert [r[1:] for r in session.reports] == [(512, "2", False)] * 2, "what it holds is told all the same"


async def test_a_device_that_writes_what_is_no_longer_there_starts_anew() -> None:
    session = Session()
    del session.published["2"]
    session.wanted = "3"
    assert 0 in await ask(session, {0: b"1", 3: {0: b"2", 1: 512}})
    assert (await ask(session, {0: b"1"}))[2][2] == 0


async def test_what_may_not_be_sent_makes_it_wait() -> None:
    session = Session()
    session.send = False
    assert await ask(session, {0: b"1", 2: 9}) == {0: {0: 9, 1: 60}}
    session.wanted = "none"
    assert 0 in await ask(session, {0: b"1"})


async def test_rubbish_is_the_peers_fault() -> None:
    request = Request("http", "127.0.0.1", Credentials(), "dfu", b"\xa1\x00")
    with pytest.raises(PeerError):
        await AjourDialect(DrogueConfig()).answer(request, Session())


@pytest.mark.parametrize("body", [b"", b"\x80", b"\x8f", b"\xde\x00\x00", b"{}", b"\x00"])
def test_it_does_not_take_what_others_speak(body: bytes) -> None:
    assert not AjourDialect(DrogueConfig()).recognises("", body)
