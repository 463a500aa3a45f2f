"""Claim codes on a real store: spent once each, with the device or not at all, and never told apart."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from dfud_local.store import LocalStore
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import App, Bus, Metadata, NotFoundError, PeerError, Selector
from dfud.model.credentials import verify
from dfud.registry import audit
from dfud.registry.claims import Claims
from dfud.registry.registry import Registry
from dfud.registry.writing import Precondition
from dfud.testing.daemon import DaemonProcess
from dfud.wire.enrol import Enrolment, decode_enrolment_untrusted, encode_enrolment
from tests.cli.test_dfuctl import Dfuctl

KEY = b"k" * 32
SECRET = "s" * 22
ANY = Selector()


class Desk:
    def __init__(self, store: LocalStore, bus: Bus) -> None:
        self.now_s = 1_800_000_000.0
        self.store = store
        self.registry = Registry(store, bus, KEY, self.now)
        self.claims = Claims(self.registry, store, KEY, self.now)

    def now(self) -> float:
        self.now_s += 1e-5  # so that the audit log has an order
        return self.now_s

    async def devices(self) -> list[str]:
        return [v.device.name for v in await self.store.devices("a")]

    async def left(self) -> int:
        return sum(left for _, left in await self.claims.all_of("a"))


@pytest.fixture
async def desk(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Desk]:
    bus, store = Bus(), LocalStore(tmp_path / "state")
    await nursery.start(store.run, bus)
    found = Desk(store, bus)
    await found.registry.create_app(App(Metadata("a")), "admin")
    yield found
    nursery.cancel_scope.cancel()


async def test_a_code_makes_one_device_with_the_secret_it_brought(desk: Desk) -> None:
    _, code = await desk.claims.create("a", "admin", labels={"site": "attic"})
    assert await desk.claims.enrol("a", "d1", code, SECRET)
    view = await desk.store.device("a", "d1")
    assert view is not None
    assert view.device.metadata.labels == {"site": "attic"}
    assert verify(view.device.spec, None, SECRET, KEY)
    assert SECRET not in str(view.device.spec), "hashed"
    assert not await desk.claims.enrol("a", "d2", code, SECRET)
    assert await desk.devices() == ["d1"]


async def test_the_same_again_is_accepted_and_spends_nothing(desk: Desk) -> None:
    claim, code = await desk.claims.create("a", "admin", uses=2)
    for _ in range(3):
        assert await desk.claims.enrol("a", "d1", code, SECRET)
    assert await desk.left() == 1
    assert not await desk.claims.enrol("a", "d1", code, "another" * 4), "the name is taken"
    await desk.claims.delete("a", claim.id, "admin")
    assert await desk.claims.enrol("a", "d1", code, SECRET), "its answer was lost, and the claim is gone meanwhile"
    assert not await desk.claims.enrol("a", "d2", code, SECRET)


async def test_many_devices_at_once_spend_each_use_once(desk: Desk) -> None:
    _, code = await desk.claims.create("a", "admin", uses=5)
    got: list[str] = []

    async def one(name: str) -> None:
        if await desk.claims.enrol("a", name, code, SECRET):
            got.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, f"d{number:02}")
    assert len(got) == 5
    assert await desk.devices() == sorted(got)
    assert await desk.left() == 0


async def test_what_is_not_right_makes_no_device_and_spends_no_use(desk: Desk) -> None:
    await desk.registry.create_app(App(Metadata("b")), "admin")
    _, code = await desk.claims.create("a", "admin", hours=1, device="only")
    assert not await desk.claims.enrol("a", "other", code, SECRET)
    assert not await desk.claims.enrol("b", "only", code, SECRET)
    assert not await desk.claims.enrol("nothing", "only", code, SECRET)
    assert not await desk.claims.enrol("a", "only", code[:-1], SECRET)
    assert not await desk.claims.enrol("a", "only", code[:10], SECRET)
    assert not await desk.claims.enrol("a", "only", "", SECRET)
    desk.now_s += 3601
    assert not await desk.claims.enrol("a", "only", code, SECRET), "it has expired"
    desk.now_s -= 2
    assert await desk.devices() == []
    assert await desk.left() == 1
    assert await desk.claims.enrol("a", "only", code, SECRET)


@pytest.mark.parametrize("name", ["..", ".", "a/../b", "a\u202eb", "a\x1bb", " a", "e\u0301"])
async def test_a_board_may_not_call_itself_what_leads_elsewhere_or_hides(desk: Desk, name: str) -> None:
    """A board that enrolled as `..` had its app deleted in its place."""
    _, code = await desk.claims.create("a", "admin")
    with pytest.raises(PeerError):
        await desk.claims.enrol("a", name, code, SECRET)
    assert await desk.devices() == [] and await desk.left() == 1


async def test_a_code_ends_with_its_app_even_if_another_app_gets_the_name(desk: Desk) -> None:
    _, code = await desk.claims.create("a", "admin")
    await desk.registry.delete_app("a", Precondition(), "admin")
    assert not await desk.claims.enrol("a", "d", code, SECRET)
    await desk.registry.create_app(App(Metadata("a")), "somebody")
    assert not await desk.claims.enrol("a", "d", code, SECRET)
    assert await desk.claims.all_of("a") == []


async def test_a_disabled_app_takes_nobody(desk: Desk) -> None:
    _, code = await desk.claims.create("a", "admin")
    await desk.registry.update_app("a", App(Metadata("a"), {"core": {"disabled": True}}), "admin")
    assert not await desk.claims.enrol("a", "d", code, SECRET)
    assert await desk.left() == 1


async def test_everything_is_on_record_and_nothing_secret_is(desk: Desk) -> None:
    claim, code = await desk.claims.create("a", "eve")
    await desk.claims.enrol("a", "d", code, SECRET)
    await desk.claims.delete("a", claim.id, "eve")
    entries = [entry for _, entry in await audit.read(desk.store)][1:]
    assert [(e.by, e.what, e.target) for e in entries] == [
        ("eve", "create-claim", f"a/{claim.id}"),
        (f"claim {claim.id}", "enrol", "a/d"),
        ("eve", "delete-claim", f"a/{claim.id}"),
    ]
    stored = str(await desk.store.documents("claim")) + str(entries)
    assert code[11:] not in stored and SECRET not in stored


async def test_a_claim_that_cannot_be_is_refused(desk: Desk) -> None:
    for wrong in ({"uses": 0}, {"uses": 1001}, {"hours": 0}, {"device": "d", "uses": 2}, {"device": "\n"}, {"labels": {"": "x"}}):
        with pytest.raises(PeerError):
            await desk.claims.create("a", "admin", **wrong)  # wrong on purpose
    with pytest.raises(NotFoundError):
        await desk.claims.create("nothing", "admin")
    with pytest.raises(NotFoundError, match="no claim dfc_x in app a"):
        await desk.claims.delete("a", "dfc_x", "admin")
    assert await desk.claims.all_of("a") == []


@given(st.binary(max_size=1200))
def test_no_message_raises_anything_but_its_error(data: bytes) -> None:
    good = encode_enrolment(Enrolment("a", "d", "dfc_x", SECRET))
    for message in (data, good[: len(data) % len(good)] + data, bytes(a ^ b for a, b in zip(good, data, strict=False))):
        told = ""
        try:
            decode_enrolment_untrusted(message)
        except PeerError as error:
            told = str(error)
        assert SECRET not in told


async def test_a_device_makes_itself_known_over_http(nursery: trio.Nursery, tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "dfud")
    await daemon.init()
    await nursery.start(daemon.run)
    run = Dfuctl(tmp_path)
    await run("login", daemon.urls["registry"], "--token", daemon.token)
    await run("app", "create", "a", "--unsigned")
    code = await run("--app", "a", "claim", "create", "--uses", "2", "-l", "site=attic")
    async with httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as device:

        async def enrol(name: str, code: str, secret: str = SECRET, status: int = 200) -> httpx.Response:
            answer = await device.post("/v1/enrol", content=encode_enrolment(Enrolment("a", name, code, secret)))
            assert answer.status_code == status, answer.text
            return answer

        assert (await enrol("d1", code)).headers["command"] == "enrol"
        authorization = {"authorization": "Basic " + base64.b64encode(f"d1@a:{SECRET}".encode()).decode()}
        assert (await device.post("/v1/temp", content=b"1", headers=authorization)).status_code == 202
        wrong = await enrol("d2", code[:-1] + ("x" if code[-1] != "x" else "y"), status=403)
        taken = await enrol("d1", code, "t" * 22, status=403)
        login = await device.post("/v1/dfu", content=b"\x80")
        assert wrong.content == taken.content == login.content, "not told apart"
        assert (await device.post("/v1/enrol", content=b"\x80")).status_code == 400
        for number in range(12):
            answer = await device.post("/v1/enrol", content=encode_enrolment(Enrolment("a", "d9", f"dfc_{number}", SECRET)))
        assert answer.status_code == 429
        await enrol("d9", code, status=429)
        await enrol("d8", code)
    (listed,) = json.loads(await run("-o", "json", "--app", "a", "claim", "list"))
    assert (listed["uses"], listed["left"], listed["labels"]) == (2, 0, {"site": "attic"})
    assert "0 of 2" in await run("--app", "a", "claim", "list")
    await run("--app", "a", "claim", "delete", "--yes", listed["id"])
    assert "no claim" in await run("--app", "a", "claim", "delete", "--yes", listed["id"], fails=True)
    told = json.dumps(daemon.lines)
    assert SECRET not in told and code[11:] not in told
    await _readers_see_no_claims(daemon)
    nursery.cancel_scope.cancel()


async def _readers_see_no_claims(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        made = (await admin.post("/api/tokens/v1alpha1", json={"roles": {"a": "reader"}})).json()
        headers: dict[str, Any] = {"authorization": f"Bearer {made['token']}"}
        for method in ("GET", "POST"):
            answer = await admin.request(method, "/api/dfu/v1/apps/a/claims", headers=headers, json={})
            assert answer.status_code == 403
