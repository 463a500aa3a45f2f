"""The agent's CoAP client, on real MicroPython in the heap that a device has, against servers that others wrote."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfud.testing.ports import own_address
from tests.devicefw.coappeer import CHUNKS, NEWS, PACKAGE, pattern
from tests.devicefw.coapside import HERE, drive, job
from tests.real_parts import require

GET, POST, PUT = 1, 2, 3
CONTENT, CHANGED = 0x45, 0x44


def shown(data: bytes) -> list[object]:
    return [len(data), hashlib.sha256(data).hexdigest(), data[:64].hex()]


@pytest.fixture(scope="module")
def with_aiocoap() -> Iterator[str]:
    host, port = own_address(), 5683
    process = subprocess.Popen(
        [sys.executable, str(HERE / "coappeer.py"), host, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "listening\n"
    yield f"{host}:{port}"
    process.stdin.close()
    process.wait(20)
    process.stdout.close()


@pytest.fixture
def with_libcoap() -> Iterator[str]:
    host, port = own_address(), 6683
    process = subprocess.Popen([require("coap-server"), "-A", host, "-p", str(port), "-d", "10"])
    yield f"{host}:{port}"
    process.terminate()
    process.wait(20)


@pytest.mark.parametrize("block", [1024, 256])
def test_statuses_commands_and_chunks_of_every_size_with_aiocoap(tmp_path: Path, with_aiocoap: str, block: int) -> None:
    statuses = [pattern(n) for n in (1, 1023, 1024, 1025, 4096)]
    steps: list[list[object]] = [["status", len(data), 0] for data in statuses]
    steps += [["chunk", PACKAGE, number] for number in range(len(CHUNKS))]
    steps += [["status", b"none".hex(), 0], ["status", b"long 4096".hex(), 0], ["status", b"slow".hex(), 0]]
    steps += [["chunk", PACKAGE, 99], ["status", b"long 7000".hex(), 0]]
    results, counts = drive(tmp_path, job(with_aiocoap, *steps, block=block))
    expected = [shown(hashlib.sha256(data).digest()) for data in statuses] + [shown(data) for data in CHUNKS]
    expected += [shown(b""), shown(bytes(4096)), shown(b"at last")]
    assert results[:-2] == expected
    assert results[-2:] == [["Gone", "status 4.04"], ["TransportError", "the answer is larger than the buffer"]]
    assert counts["sent"] > sum(len(data) for data in statuses + CHUNKS) // block


def test_credentials_that_are_wrong_are_said_to_be(tmp_path: Path, with_aiocoap: str) -> None:
    results, _ = drive(tmp_path, job(with_aiocoap, ["status", "81", 0], secret="falsch"))
    assert results == [["Denied", "status 4.03"]]


def test_aiocoap_wakes_an_observing_device(tmp_path: Path, with_aiocoap: str) -> None:
    results, counts = drive(tmp_path, job(with_aiocoap, ["status", "0a0b", 60], ["status", "0c", 0]))
    assert results == [shown(NEWS + b"\x0a\x0b"), shown(hashlib.sha256(b"\x0c").digest())]
    assert counts["sent"] == 2, "it waited; it did not ask again"


def test_blocks_both_ways_observing_and_a_separate_answer_with_libcoap(tmp_path: Path, with_libcoap: str) -> None:
    data = pattern(6000)
    steps: list[list[object]] = [
        ["ask", PUT, ["example_data"], len(data)],
        ["ask", GET, ["example_data"], ""],
        ["ask", GET, ["async"], "", "1"],
        ["observe", ["time"], 3, 60],
        ["ask", GET, ["nowhere"], ""],
    ]
    (put, got, late, times, missing), _ = drive(tmp_path, job(with_libcoap, *steps, auth=False, block=1024))
    assert put[0] in (CHANGED, 0x41)
    assert got == [CONTENT, *shown(data)]
    assert late == [CONTENT, *shown(b"done")]
    assert len(times) == len(set(times)) == 3
    assert missing == [0x84]


def test_libcoap_refuses_the_credentials_option_and_that_is_no_crash(tmp_path: Path, with_libcoap: str) -> None:
    """4209 is critical; a server that does not know it answers 4.02."""
    results, _ = drive(tmp_path, job(with_libcoap, ["status", "81", 0]))
    assert results == [["TransportError", "status 4.02"]]


def test_a_server_that_is_not_there_costs_only_time(tmp_path: Path) -> None:
    results, counts = drive(tmp_path, job(f"{own_address()}:9", ["status", "81", 0], ["status", "81", 5], ack_timeout_ms=20))
    assert [r[0] for r in results] == ["TransportError", "TransportError"]
    assert results[0][1] == "no answer: [Errno 111] ECONNREFUSED"
    assert counts == {"sent": 2, "repeated": 8}, "four times again each: MAX_RETRANSMIT"


@pytest.mark.parametrize(
    "wrong", [{"url": "http://x"}, {"block": 1000}, {"block": 2048}, {"psk": "00"}, {"psk": "xy" * 16}], ids=str
)
def test_a_wrong_configuration_is_refused_at_the_start(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="ValueError"):
        drive(tmp_path, job("127.0.0.1:1", ["status", "81", 0], **wrong))
