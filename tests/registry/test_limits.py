"""What one user or stranger asks costs the others nothing: each limit of [registry], tried on the real process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from dfud.api import App, Device, Metadata, PeerError, PutApp, PutDevice
from dfud.registry.rules import RecordLimits, check_spec_untrusted
from dfud.testing.daemon import DaemonProcess
from tests.registry.served import APPS, DFU, TOKENS, ask, peak_rss, prepared

WRONG = {"authorization": "Bearer drg_abcdef_" + "0" * 36}
DEVICES, SPEC_BYTES = 300, 60_000


def large_spec() -> dict[str, Any]:
    """A spec that is many times as large as objects as it is as JSON."""
    return {"x": [f"{n:05}" for n in range(SPEC_BYTES // 8)]}


def large_app() -> list[list[PutApp | PutDevice]]:
    spec = large_spec()
    changes: list[PutApp | PutDevice] = [PutApp(App(Metadata("a", resource_version="1")))]
    changes += [PutDevice(Device(Metadata(f"d{n:03}", "a", resource_version="1"), spec)) for n in range(DEVICES)]
    return [[change] for change in changes]


@pytest.fixture
async def daemon(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[DaemonProcess]:
    lines = "failures_per_minute = 5\nlists = 6\nlists_per_user = 4\ntokens_per_user = 3\nclaims_per_app = 2"
    found = await prepared(tmp_path / "dfud", lines, large_app())
    await nursery.start(found.run)
    yield found
    nursery.cancel_scope.cancel()


async def test_many_lists_at_once_take_little_memory_and_are_whole(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        tokens = [(await ask(admin, 200, "POST", TOKENS, json={"user": f"u{n}"}))["token"] for n in range(3)]
        await ask(admin, 200, "GET", f"{APPS}/a/devices", params={"limit": 3})
        before = peak_rss(daemon)
        whole: list[int] = []

        async def listing(token: str) -> None:
            async with admin.stream("GET", f"{APPS}/a/devices", headers={"authorization": f"Bearer {token}"}) as answer:
                assert answer.status_code == 200
                size = 0
                tail = b""
                async for data in answer.aiter_bytes():
                    size += len(data)
                    tail = (tail + data)[-20:]
                assert tail.endswith(b"]")
                whole.append(size)

        async with trio.open_nursery() as nursery:
            for n in range(12):
                nursery.start_soon(listing, tokens[n % 3])
        grown = peak_rss(daemon) - before
    assert len(whole) == 12 and min(whole) > DEVICES * SPEC_BYTES
    # Read as a whole, one of these lists is 140 MiB of objects.
    assert grown < 100 << 20, f"{grown >> 20} MiB for lists of {whole[0] >> 20} MiB"


async def test_a_list_has_the_devices_that_were_asked_for_in_their_order(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        for limit, offset, expected in ((1000, 0, DEVICES), (10, 5, 10), (1, 299, 1), (5, 300, 0), (0, 0, 0)):
            found = await ask(admin, 200, "GET", f"{APPS}/a/devices", params={"limit": limit, "offset": offset})
            names = [device["metadata"]["name"] for device in found]
            assert names == [f"d{n:03}" for n in range(offset, offset + expected)]
        assert (await ask(admin, 404, "GET", f"{APPS}/b/devices"))["error"] == "ReferenceNotFound"


async def test_a_list_whose_reader_went_away_gives_its_place_back(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        for _ in range(12):
            async with admin.stream("GET", f"{APPS}/a/devices") as answer:
                assert answer.status_code == 200  # and is closed before it is read
        assert len(await ask(admin, 200, "GET", f"{APPS}/a/devices")) == DEVICES


async def test_a_selector_costs_what_its_length_is_allowed_to(daemon: DaemonProcess) -> None:
    """30 kB of spaces held both planes for 14 s, 1,200 terms were more than the database takes."""
    async with daemon.client() as admin:
        for labels, message in ((" " * 30_000, "30000 bytes"), (",".join(["a"] * 1_200), "more than 100 terms")):
            for path in (f"{APPS}/a/devices", APPS):
                answer = await admin.get(path, params={"labels": labels[:14_000]})
                assert answer.status_code == 400, answer.text
            found = await ask(admin, 400, "POST", f"{DFU}/update", json={"firmware": None, "selector": labels})
            assert message in found["message"]
        most = ",".join(f"!missing{n}" for n in range(100))
        assert len(await ask(admin, 200, "GET", f"{APPS}/a/devices", params={"labels": most, "limit": 7})) == 7


async def test_wrong_tokens_do_not_stop_right_ones_from_the_same_address(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin, httpx.AsyncClient(base_url=daemon.urls["registry"], verify=False, timeout=60) as stranger:
        statuses = [(await stranger.get(APPS, headers=WRONG)).status_code for _ in range(31)]
        assert statuses == [403] * 5 + [429] * 26
        for path in ("/healthz", "/readyz"):
            assert (await stranger.get(path)).status_code == 200
        assert (await stranger.get(APPS)).status_code == 429, "no token is a wrong one, too"
        await ask(admin, 200, "GET", APPS)
        fresh = await ask(admin, 200, "POST", TOKENS, json={"description": "never used before"})
        answer = await stranger.get(APPS, headers={"authorization": f"Bearer {fresh['token']}"})
        assert answer.status_code == 200
        told = [line for line in daemon.lines if line["event"] == "a user was refused"]
        assert {(line["reason"], line.get("token", "")) for line in told} == {
            ("wrong-token", "drg_abcdef"),
            ("too-many-failures", ""),
        }
        assert len(told) <= 4, "once a minute for each reason, and the minute may have changed"
        metrics = (await admin.get("/metrics")).text
        assert 'dfud_denied_users_total{reason="wrong-token"} 5' in metrics
        assert 'dfud_denied_users_total{reason="too-many-failures"} 27' in metrics


async def test_who_may_not_leaves_a_line_with_his_name(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        body = {"user": "eve", "roles": {"a": "reader"}}
        eve = {"authorization": f"Bearer {(await ask(admin, 200, 'POST', TOKENS, json=body))['token']}"}
        for _ in range(3):
            assert (await admin.delete(f"{APPS}/a/devices/d001", headers=eve)).status_code == 403
        assert 'dfud_denied_users_total{reason="not-allowed"} 3' in (await admin.get("/metrics")).text
    (line, *_) = [line for line in daemon.lines if line["event"] == "a user was refused"]
    assert (line["user"], line["reason"], line["method"]) == ("eve", "not-allowed", "DELETE")


async def test_tokens_and_claim_codes_are_limited(daemon: DaemonProcess) -> None:
    async with daemon.client() as admin:
        for _ in range(2):
            await ask(admin, 200, "POST", TOKENS, json={})
        found = await ask(admin, 409, "POST", TOKENS, json={})
        assert "has 3 tokens already" in found["message"]
        await ask(admin, 200, "POST", TOKENS, json={"user": "another"})
        for _ in range(2):
            await ask(admin, 201, "POST", f"{DFU}/claims", json={})
        assert "has 2 claim codes already" in (await ask(admin, 409, "POST", f"{DFU}/claims", json={}))["message"]


async def test_only_trusted_proxies_say_who_asks(nursery: trio.Nursery, tmp_path: Path) -> None:
    daemon = await prepared(tmp_path / "dfud", 'failures_per_minute = 2\ntrusted_proxies = ["127.0.0.0/8"]')
    await nursery.start(daemon.run)
    async with httpx.AsyncClient(base_url=daemon.urls["registry"], verify=False, timeout=60) as proxy:

        async def status(forwarded: str) -> int:
            return (await proxy.get(APPS, headers={**WRONG, "x-forwarded-for": forwarded})).status_code

        assert [await status("198.51.100.1") for _ in range(3)] == [403, 403, 429]
        assert await status("203.0.113.9, 198.51.100.1") == 429, "what he says of himself does not count"
        assert await status("198.51.100.2") == 403
    nursery.cancel_scope.cancel()


async def test_nobody_else_is_believed(daemon: DaemonProcess) -> None:
    async with httpx.AsyncClient(base_url=daemon.urls["registry"], verify=False, timeout=60) as stranger:
        headers = [{**WRONG, "x-forwarded-for": f"198.51.100.{n}"} for n in range(7)]
        assert [(await stranger.get(APPS, headers=h)).status_code for h in headers] == [403] * 5 + [429] * 2


@pytest.mark.parametrize("value", [[], True, None, {"approval": "yes"}, {"approval": 1}, {"aproval": True}])
def test_a_slip_in_what_asks_for_a_second_pair_of_eyes_is_refused(value: object) -> None:
    with pytest.raises(PeerError, match=r"spec\.rollouts: expected an object such as"):
        check_spec_untrusted({"rollouts": value}, RecordLimits())
    for right in ({}, {"approval": False}, {"approval": True}):
        check_spec_untrusted({"rollouts": right}, RecordLimits())
    check_spec_untrusted({"rollouts": value}, RecordLimits(), {"rollouts": value})
