"""A whole dfud behind a load balancer: devices are counted one by one, and guessing turns away nobody else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.balancer import KINDS, Balancer
from tests.daemon.outside import Outside, outside

TRUSTED = 'trusted_proxies = ["127.0.0.1"]'
FAILURES = 30
SETTINGS = {"endpoint": f"failures_per_address = {FAILURES}\nfailures_per_device = 5"}
PLUGINS = ("local", "http")
STRANGER, HONEST = "198.51.100.1", "198.51.100.2"


async def guesses(client: httpx.AsyncClient, **headers: str) -> list[int]:
    """Try one more secret than may be wrong, each for another device, so that the address alone is what counts."""
    codes = []
    for number in range(FAILURES + 1):
        auth = (f"x{number}@good", "wrong")
        codes.append((await client.post("/v1/temp", content=b"1", auth=auth, headers=headers)).status_code)
    return codes


async def right(daemon: Outside, client: httpx.AsyncClient, **headers: str) -> int:
    """Log in with a right secret that nobody has shown yet."""
    auth = ("h0@good", daemon.secrets_of["h0"])
    return (await client.post("/v1/temp", content=b"1", auth=auth, headers=headers)).status_code


async def test_who_guesses_behind_a_proxy_turns_away_nobody_else_there(tmp_path: Path) -> None:
    async with outside(tmp_path, {**SETTINGS, "transport.http": TRUSTED}, PLUGINS) as (daemon, _):
        async with httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as proxy:
            assert await guesses(proxy, **{"X-Forwarded-For": STRANGER}) == [403] * FAILURES + [429]
            assert await right(daemon, proxy, **{"X-Forwarded-For": f"{HONEST}, {STRANGER}"}) == 429
            assert await right(daemon, proxy, **{"X-Forwarded-For": f"{STRANGER}, {HONEST}"}) == 202
        told = {line["peer"] for line in daemon.lines if "peer" in line}
        assert STRANGER in told and "127.0.0.1" not in told, told


async def test_without_trusted_proxies_the_peer_is_who_connects(tmp_path: Path) -> None:
    async with outside(tmp_path, SETTINGS, PLUGINS) as (daemon, _):
        async with httpx.AsyncClient(base_url=daemon.urls["http"], timeout=60) as client:
            assert await guesses(client, **{"X-Forwarded-For": STRANGER}) == [403] * FAILURES + [429]
            assert await right(daemon, client, **{"X-Forwarded-For": HONEST}) == 429


@contextlib.asynccontextmanager
async def client_at(balancer: Balancer, local: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(local_address=local)
    async with httpx.AsyncClient(base_url=balancer.url, timeout=60, transport=transport) as client:
        yield client


@pytest.mark.parametrize("kind", KINDS)
async def test_the_documented_balancers_say_who_asks(kind: str, tmp_path: Path) -> None:
    balancer = Balancer(kind, tmp_path / kind)
    async with outside(tmp_path / "dfud", {**SETTINGS, "transport.http": TRUSTED}, PLUGINS) as (daemon, _):
        balancer.start([(daemon.ports["http"], daemon.ports["registry"])] * 3)
        try:
            async with client_at(balancer, "127.0.7.1") as stranger, client_at(balancer, "127.0.7.2") as honest:
                codes = await guesses(stranger, **{"X-Forwarded-For": "127.0.7.2"})
                assert codes == [403] * FAILURES + [429], balancer.log()
                assert await right(daemon, stranger) == 429
                assert await right(daemon, honest) == 202
        finally:
            balancer.stop()
