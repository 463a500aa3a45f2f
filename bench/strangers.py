"""Hostile strangers, for bench.soak: a process of its own, so that its load is not taken for the daemon's slowness.

Everything goes to the loopback addresses that it is given, from other loopback addresses than the honest devices', in loops
that are bounded by the time given. Seeds are printed.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import random
import ssl
from collections.abc import Awaitable, Callable

import trio

Attack = Callable[["Target", random.Random], Awaitable[None]]
SECRET = "hostile-secret"


class Target:
    """Where the daemon listens: (host, port) of the device plane and the user plane, and of CoAP or None."""

    def __init__(self, device: tuple[str, int], user: tuple[str, int], coap: tuple[str, int] | None) -> None:
        self.device = device
        self.user = user
        self.coap = coap


@contextlib.asynccontextmanager
async def connection(address: tuple[str, int], source: str):  # type: ignore[no-untyped-def]  # a context manager's own type
    with trio.socket.socket() as sock:
        await sock.bind((source, 0))
        with trio.fail_after(5):
            await sock.connect(address)
        yield trio.SocketStream(sock)


def source(rng: random.Random) -> str:
    return f"127.0.0.{rng.randrange(2, 250)}"


async def answer(stream: trio.SocketStream, within_s: float = 2.0) -> bytes:
    with trio.move_on_after(within_s):
        return bytes(await stream.receive_some(65536))
    return b""


def request(path: str, body: bytes = b"", *, method: str = "POST", auth: str = "", extra: str = "") -> bytes:
    authorization = f"Authorization: {auth}\r\n" if auth else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{authorization}{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def tiny_chunks(target: Target, rng: random.Random) -> None:
    """A body in chunks of two bytes that never ends."""
    async with connection(target.device, source(rng)) as stream:
        await stream.send_all(b"POST /v1/dfu HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(200):
            await stream.send_all(b"2\r\n\x81\xa1\r\n" * 500)
            await trio.sleep(0.05)


async def slow_head(target: Target, rng: random.Random) -> None:
    async with connection(rng.choice((target.device, target.user)), source(rng)) as stream:
        for byte in b"POST /v1/dfu HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 400:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.2)


async def junk(target: Target, rng: random.Random) -> None:
    async with connection(rng.choice((target.device, target.user)), source(rng)) as stream:
        await stream.send_all(rng.randbytes(rng.choice((1, 100, 10_000, 200_000))))
        await answer(stream)


async def handshakes(target: Target, rng: random.Random) -> None:
    """Half a TLS handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    session = context.wrap_bio(incoming, outgoing, server_hostname="x")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    async with connection(rng.choice((target.device, target.user)), source(rng)) as stream:
        await stream.send_all(outgoing.read()[: rng.randrange(1, 300)])
        await trio.sleep(rng.uniform(0, 10))


async def wrong_passwords(target: Target, rng: random.Random) -> None:
    async with connection(target.device, source(rng)) as stream:
        for _ in range(40):
            auth = basic(f"d{rng.randrange(60)}@soak", str(rng.random()))
            await stream.send_all(request("/v1/dfu", b"\x80", auth=auth))
            if not await answer(stream):
                return


async def odd_telemetry(target: Target, rng: random.Random) -> None:
    """A device that is known, and mad."""
    auth = basic("hostile@soak", SECRET)
    bodies = (b"1e999", b"[" * 60_000, b'{"a":' * 20_000, b"\xff\xfe\0", b"NaN", rng.randbytes(3000), b'"\\ud800"')
    async with connection(target.device, source(rng)) as stream:
        for _ in range(10):
            extra = rng.choice(("", "Content-Type: application/json\r\n", "Content-Type: application/cbor\r\n"))
            path = rng.choice(("/v1/sensor", "/v1/dfu", "/v1/enrol"))
            await stream.send_all(request(path, rng.choice(bodies), auth=auth, extra=extra))
            if not await answer(stream):
                return
            await trio.sleep(0.05)


async def wrong_tokens(target: Target, rng: random.Random) -> None:
    async with connection(target.user, source(rng)) as stream:
        for _ in range(40):
            selector = rng.choice(("a", "%20" * 10_000, "a%3Db%2C" * 1200))
            path = f"/api/registry/v1alpha1/apps/soak/devices?labels={selector}"
            await stream.send_all(request(path, method="GET", auth=f"Bearer drg_{rng.randrange(10**6):06}_x"))
            if not await answer(stream):
                return


async def datagrams(target: Target, rng: random.Random) -> None:
    if target.coap is None:
        return await trio.sleep(1)
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((source(rng), 0))
        for _ in range(200):
            start = rng.choice((b"", b"\x40\x01", b"\x48\x02"))
            await sock.sendto(start + rng.randbytes(rng.randrange(1, 1200)), target.coap)
            await trio.sleep(0.005)


ATTACKS: dict[str, tuple[Attack, int]] = {
    "tiny chunks": (tiny_chunks, 40),
    "slow heads": (slow_head, 40),
    "junk": (junk, 4),
    "half handshakes": (handshakes, 20),
    "wrong passwords": (wrong_passwords, 4),
    "odd telemetry": (odd_telemetry, 4),
    "wrong tokens": (wrong_tokens, 2),
    "datagrams": (datagrams, 2),
}


async def again_and_again(attack: Attack, target: Target, rng: random.Random) -> None:
    while True:
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            with trio.move_on_after(30):
                await attack(target, rng)
        await trio.sleep(rng.uniform(0.1, 0.5))


async def main(target: Target, minutes: float, seed: int) -> None:
    print(f"strangers: seed {seed}", flush=True)
    with trio.move_on_after(minutes * 60):
        async with trio.open_nursery() as nursery:
            for name, (attack, count) in ATTACKS.items():
                for number in range(count):
                    nursery.start_soon(again_and_again, attack, target, random.Random(f"{seed} {name} {number}"))


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host.startswith("127."):
        raise argparse.ArgumentTypeError(f"{text}: expected an address on the loopback")
    return host, int(port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=address, required=True)
    parser.add_argument("--user", type=address, required=True)
    parser.add_argument("--coap", type=address)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    given = parser.parse_args()
    trio.run(main, Target(given.device, given.user, given.coap), given.minutes, given.seed)
