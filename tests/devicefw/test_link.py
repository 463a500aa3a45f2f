"""The agent's link, in parts, on real MicroPython: the url, the clock before https, pauses, odd fields."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dfud.model.espimage import hardware_name
from tests.real_parts import require

ROOT = Path(__file__).parents[2]
HEAD = f"""
import sys
sys.path.insert(0, {str(ROOT / "devicefw")!r})
import json
"""


def run(program: str) -> list[Any]:
    """Run a program on MicroPython; return what it printed, a line of JSON each."""
    command = [require("micropython"), "-X", "heapsize=2M", "-c", HEAD + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


URLS = [
    ("http://192.168.1.2:8880", ["http", "192.168.1.2", 8880]),
    ("http://dfud.example", ["http", "dfud.example", 80]),
    ("https://dfud.example/", ["https", "dfud.example", 443]),
    ("http://[::1]:8880", ["http", "::1", 8880]),
    ("http://[fe80::1]/", ["http", "fe80::1", 80]),
    ("http://[::1", None),
    ("http://::1", None),
    ("http://::1:8880", None),
    ("http://host:8880/path", None),
    ("http://host/path", None),
    ("http://host//", None),
    ("http://host?query", None),
    ("http://me:secret@host", None),
    ("http://host:0", None),
    ("http://host:65536", None),
    ("http://host:http", None),
    ("http://:80", None),
    ("http://", None),
    ("ftp://host", None),
    ("host:8880", None),
    ("", None),
]


def test_a_url_is_understood_or_refused_with_a_sentence() -> None:
    program = f"""
from dfu.transport import address
for url in {[url for url, _ in URLS]!r}:
    try:
        print(json.dumps(address(url, {{"http": 80, "https": 443}})))
    except ValueError as error:
        print(json.dumps(str(error)))
"""
    for (url, expected), found in zip(URLS, run(program), strict=True):
        wrong = f"url {url}: expected http or https://host:port, an IPv6 host in brackets, and no path"
        assert found == (wrong if expected is None else expected)


def test_a_hardware_has_the_name_that_manifests_have() -> None:
    names = ["esp32c3", "ESP32-C3", "esp32-c3", "Esp32C3-Board1", "esp32-c3-Board-2", "esp32", "ESP32", "ESP32-board"]
    names += ["esp32-s3", "ESP32S2", "ESP32-P4-x", "esp32-h2-", "esp32-c3x", "esp32c", "esp32c33", "esp32-", "esp32-c"]
    names += ["esp32_c3", "toaster", "rp2040", ""]
    program = f"""
from dfu.transport import hardware_name
for name in {names!r}:
    print(json.dumps(hardware_name(name)))
"""
    assert run(program) == [hardware_name(name) for name in names]


def test_over_coap_a_heap_without_a_large_piece_gets_smaller_blocks() -> None:
    """Once there is no piece for a datagram, there may never be one again: hostile answers have cut a heap up like that for good."""
    program = """
import asyncio
from dfu.coap import CoapTransport
class Sock:
    lost = 0
    def recv(self, size):
        if size == 64:
            Sock.lost += 1
            return b"x" * 64
        if size > 500:
            raise MemoryError
        return b"y" * 300
t = CoapTransport({"url": "coap://x", "device": "d", "app": "a", "secret": "s", "block": 1024})
async def readable():
    pass
t.sock, t.room, t._readable = Sock(), memoryview(bytearray(2000)), readable
from time import ticks_add, ticks_ms
length = asyncio.run(t._receive(ticks_add(ticks_ms(), 60000)))
print(json.dumps([length, 16 << t.exponent, Sock.lost]))
"""
    assert run(program) == [[300, 256, 2]]


def test_the_host_header_names_host_and_port() -> None:
    program = """
from dfu.http import HttpTransport
for url in ("http://[::1]:8880", "http://host"):
    t = HttpTransport({"url": url, "app": "a", "device": "d", "secret": "s"})
    print(json.dumps([t.host, t.port, t.head.decode().split("\\r\\n")[0]]))
"""
    assert run(program) == [["::1", 8880, "Host: [::1]:8880"], ["host", 80, "Host: host:80"]]


def test_the_clock_is_set_before_https_or_the_error_says_so() -> None:
    program = """
import asyncio
import dfu.tls
from dfu.http import HttpTransport
from dfu.errors import TransportError
year = 2000
class Context:
    def __init__(self, protocol): pass
    def load_verify_locations(self, cadata): pass
class Ssl:
    PROTOCOL_TLS_CLIENT = CERT_REQUIRED = 0
    SSLContext = Context
async def refused(*arguments, **options):
    raise OSError("certificate")
dfu.tls.ssl, dfu.tls.asyncio.open_connection = Ssl, refused
dfu.tls.gmtime = lambda: (year, 1, 1)
called = []
def clock():
    global year
    called.append(year)
    year = 2026
def broken():
    raise OSError("no NTP")
def attempt(**config):
    module = dfu.tls
    t = HttpTransport({"url": "https://host", "app": "a", "device": "d", "secret": "s", "pin": bytes(64)} | config)
    try:
        asyncio.run(t._open())
    except TransportError as error:
        print(json.dumps([str(error), called]))
    sys.modules["dfu.tls"] = dfu.tls = module
attempt()
attempt(set_clock=broken)
attempt(set_clock=clock)
attempt(set_clock=clock)
"""
    hint = "connect: certificate; the clock says 2000, no certificate is valid then: set it first, see set_clock"
    plain = ["connect: certificate", [2000]]
    assert run(program) == [[hint, []], ["connect: no NTP", []], plain, plain]




def test_pauses_double_are_jittered_and_outlive_resets() -> None:
    program = """
class NVS:
    kept, worn, writes = {}, False, 0
    def __init__(self, name): pass
    def get_i32(self, key):
        if key not in NVS.kept:
            raise OSError(-0x1102)
        return NVS.kept[key]
    def set_i32(self, key, value):
        if NVS.worn:
            raise OSError(5)
        NVS.writes += 1
        NVS.kept[key] = value
    def commit(self): pass
class Esp32: pass
esp = Esp32()
esp.NVS = NVS
sys.modules["esp32"] = esp
from dfu.backoff import ANSWER, BEGUN, Backoff
b = Backoff({}, True)
def seen(which):
    found = [b.pause_ms(which) for _ in range(300)]
    return [min(found), max(found)]
rows = []
for _ in range(20):
    b.failed(BEGUN)
    rows.append(seen(BEGUN))
print(json.dumps(rows))
print(json.dumps([NVS.kept["backoff"], NVS.writes]))
for _ in range(3):
    b.failed(ANSWER)
print(json.dumps([NVS.kept["backoff"], NVS.writes]))
for _ in range(20):
    b.failed(ANSWER)
print(json.dumps([NVS.kept["backoff"], NVS.writes, seen(ANSWER)]))
b = Backoff({}, False)
print(json.dumps([seen(ANSWER), b.left_ms() > 1700000]))
b = Backoff({}, True)
print(json.dumps([seen(ANSWER), b.left_ms() > 1700000]))
b.good(BEGUN)
print(json.dumps([NVS.kept["backoff"], b.left_ms(), Backoff({}, False).left_ms()]))
NVS.worn = True
b.failed(BEGUN)
b.hold()
print(json.dumps([NVS.kept["backoff"], b.left_ms() > 0]))
b = Backoff({"backoff_ms": 40}, False)
for _ in range(7):
    b.failed(ANSWER)
print(json.dumps(seen(ANSWER)))
"""
    rows, begun, few, many, reset, power_on, confirmed, worn, short = run(program)
    for i, (low, high) in enumerate(rows):
        longest = min(1000 << i, 3_600_000)
        assert longest // 2 <= low < longest * 0.6 < longest * 0.9 < high <= longest, i
    assert begun == [13 << 8, 13], "counted up to the longest pause, and not written on and on"
    assert few == [13 << 8, 13], "failing now and then is not worth a write"
    assert many[:2] == [13 << 8 | 7, 17]
    assert 30_000 <= many[2][0] < many[2][1] <= 60_000
    assert reset[0][0] >= 30_000 and reset[1]
    assert power_on == [[0, 0], True], "who switches it on wants it now; worn flash stays worn"
    assert confirmed == [0, 0, 0]
    assert worn == [0, True]
    assert 20 <= short[0] < short[1] <= 40


@pytest.mark.parametrize("kind", ["int", "str", "bytes"])
def test_a_field_is_of_its_type_and_size_or_refused(kind: str) -> None:
    program = f"""
from dfu.errors import PackError
from dfu.pack import field
values = [None, True, -1, 0, 3, 4, 1 << 70, "", "abc", "abcd", b"", b"abc", b"abcd", [], [1], {{}}, {{1: 2}}, 1.5]
for value in values:
    try:
        print(json.dumps(str(field({{7: value}}, 7, {kind}, 3))))
    except PackError as error:
        print(json.dumps("refused: " + str(error)))
for message in ([1, 2], None, 5, "text", {{}}):
    try:
        field(message, 7, {kind}, 3)
        print("1")
    except PackError:
        print("0")
print(json.dumps(field({{}}, 7, {kind}, 3, 0, {kind}())  == {kind}()))
"""
    found = run(program)
    taken = {"int": ["0", "3"], "str": ["", "abc"], "bytes": ["b''", "b'abc'"]}[kind]
    assert [one for one in found[:18] if not one.startswith("refused: field 7")] == taken
    assert found[18:] == [0, 0, 0, 0, 0, True]


def test_a_hardware_is_named_by_its_chip() -> None:
    """What MicroPython's boards say of themselves: mpconfigboard.h of ports/esp32, MICROPY_HW_BOARD_NAME with MICROPY_HW_MCU_NAME."""
    machines = {
        "ESP32C3 module with ESP32C3": "esp32c3",
        "LOLIN_C3_MINI with ESP32-C3FH4": "esp32c3",
        "Generic ESP32 module with ESP32": "esp32",
        "Generic ESP32 module with SPIRAM with ESP32": "esp32",
        "Generic ESP32S3 module with Octal-SPIRAM with ESP32S3": "esp32s3",
        "M5Stack Atom with ESP32-PICO-D4": "esp32",
        "LOLIN_S2_MINI with ESP32-S2FN4R2": "esp32s2",
        "linux [GCC 14.2.1] version": "esp32c3",
        "": "esp32c3",
    }
    found = run(f"from dfu.transport import chip_name\nprint(json.dumps([chip_name(m) for m in {list(machines)!r}]))\n")
    assert found == [list(machines.values())]
