"""A server that asks to be left alone for a while is: over HTTP and CoAP, as far as the agent's own longest pause goes."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.devicefw.test_link import HEAD
from tests.real_parts import require

PROGRAM = """
import asyncio
from dfu.errors import TransportError
from dfu.transport import make
config = {"url": URL, "transport": URL.split(":")[0], "app": "a", "device": "d", "secret": "s", "timeout_s": 20}
transport = make(config)
async def ask():
    for _ in range(N):
        try:
            await transport.status(b"x", 0, bytearray(1024))
        except TransportError:
            pass
        print(json.dumps(getattr(transport, "retry_s", 0)))
    await transport.close()
asyncio.run(ask())
"""


def answers(url: str, count: int) -> list[int]:
    """Ask `count` times on MicroPython; return how long the server wanted to be left alone after each."""
    program = HEAD + PROGRAM.replace("URL", repr(url)).replace("N)", f"{count})")
    command = [require("micropython"), "-X", "heapsize=2M", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def http(heads: list[str]) -> Iterator[str]:
    """Answer 503 with one of the heads to each request in turn."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(60)

    def serve() -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as stream:
            for head in heads:
                while (line := stream.readline()).strip():
                    pass
                stream.read(1)
                connection.sendall(f"HTTP/1.1 503 away\r\n{head}Content-Length: 0\r\n\r\n".encode())
                assert line

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        thread.join(60)
        server.close()


def test_over_http() -> None:
    heads = ["Retry-After: 17\r\n", "", "retry-after:3\r\n", "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n"]
    with http(heads) as url:
        assert answers(url, len(heads)) == [17, 0, 3, 0], "a date is no number of seconds, and no reason to hang up"


@pytest.mark.parametrize(
    ("options", "expected"), [(b"\xd1\x01\x1e", 30), (b"\xd2\x01\x01\x00", 256), (b"", 0), (b"\xd0\x01", 0)]
)
def test_over_coap(options: bytes, expected: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(60)

        def serve() -> None:
            request, peer = server.recvfrom(2048)
            token = request[4 : 4 + (request[0] & 15)]
            server.sendto(bytes([0x60 | len(token), 0xA3]) + request[2:4] + token + options, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert answers(f"coap://127.0.0.1:{server.getsockname()[1]}", 1) == [expected]
        thread.join(60)


def test_the_pause_is_no_shorter_and_no_longer_than_the_agents_longest() -> None:
    program = """
class NVS:
    def __init__(self, name): pass
    def get_i32(self, key): raise OSError(2)
    def set_i32(self, key, value): pass
    def commit(self): pass
class Esp32: pass
esp = Esp32()
esp.NVS = NVS
sys.modules["esp32"] = esp
from dfu.backoff import ANSWER, BEGUN, Backoff
b = Backoff({"backoff_ms": 60000}, True)
b.failed(ANSWER)
b.least_ms = 17000
print(json.dumps([b.pause_ms(ANSWER), b.pause_ms(BEGUN)]))
b.least_ms = 10 ** 12
print(json.dumps(b.pause_ms(ANSWER)))
b.good(ANSWER)
print(json.dumps(b.pause_ms(ANSWER)))
"""
    command = [require("micropython"), "-X", "heapsize=2M", "-c", HEAD + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[17000, 0], 60000, 0], done.stderr
