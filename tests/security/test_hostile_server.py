"""The whole agent, on real MicroPython and behind the real bootloader, against a server that sends everything that is wrong."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import trio

from bootloader.sim.images import KEYS_AT, STATE_AT, envelope, key, key_id, key_record, state, trailer
from devicefw.sim.board import Board
from devicefw.sim.firmware import build, program
from devicefw.sim.flash import partition
from dfud.wire.manifest import FLAG_DOWNGRADE, SIGNATURE_CONTEXT
from dfud.wire.messages import Code as Why
from dfud.wire.subset import encode
from tests.package.test_build import code
from tests.real_parts import require
from tests.security.coapmutating import PSK, CoapServer, OscoreServer
from tests.security.hostile import APP, HostileEndpoint, Offer, board_at, firmware, hostile_server
from tests.security.mutating import HttpServer, Mutator

PUBLISHER = key(1)
FALLBACK, RUNNING = firmware("1.0"), firmware("1.1")
# Several chunks, and many pages.
NEWER = build(program("good", "1.2"), "1.2", code(60_000, 5))
FLOOR = 3
FURTHER = 20  # times that a fuzz goes on where it has not seen everything
LONG = [(2, ""), (3, ""), (4, "bootloader")]
EXHAUSTIVE = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]


def signed(data: bytes, **fields: Any) -> bytes:
    return envelope(data, **{"signer": PUBLISHER, "app": APP, "version": "1.2", "sequence": 6, **fields})


# All that the publisher ever signed and that this device may not install.
FOREIGN = [
    signed(RUNNING, version="1.1", sequence=5),
    signed(FALLBACK, version="1.0", sequence=4),
    signed(firmware("0.9"), version="0.9", sequence=2, flags=FLAG_DOWNGRADE),
    signed(NEWER, app="pumps"),
    signed(NEWER, hardware="esp32c3-board2"),
    signed(NEWER, size=0x1B0000),
]


class Named(Offer):
    """A package under its right name, by which a stage is judged."""

    @property
    def id(self) -> bytes:
        return hashlib.sha256(b"".join(self.sent)).digest()[:16]


def armed(board: Board) -> None:
    """The board runs a confirmed 1.1, has 1.0 to go back to, a key and a floor."""
    board.flash.program(KEYS_AT, key_record(PUBLISHER))
    board.flash.load("ota_1", FALLBACK)
    for label, data in (("ota_0", FOREIGN[0]), ("ota_1", FOREIGN[1])):
        offset, size = partition(label)
        board.flash.program(offset + size - 4096, trailer(data))
    board.flash.program(STATE_AT, state(slot=0, previous=1, accept=5, floor=FLOOR))


def flash_of(board: Board, *without: str) -> bytes:
    """Return what stands in flash, outside of some partitions."""
    data = bytearray(board.flash.read(0, board.flash.size))
    for label in without:
        offset, size = partition(label)
        data[offset : offset + size] = bytes(size)
    return bytes(data)


@pytest.mark.parametrize("install", ["", "bootloader"])
async def test_what_runs_and_what_is_below_the_floor_is_refused_before_a_byte_is_written(tmp_path: Path, install: str) -> None:
    require("micropython")
    require("riscv-gcc")
    own_floor = {0: 1, 1: APP, 2: "1.2", 3: "esp32c3", 4: 6, 5: len(NEWER), 6: hashlib.sha256(NEWER).digest(), 7: 0, 8: 9}
    raw = encode(own_floor)
    above = encode([raw, key_id(PUBLISHER), PUBLISHER.sign(SIGNATURE_CONTEXT + raw)])
    offers = [
        (Offer("what runs", FOREIGN[0], RUNNING), Why.INTERNAL, "running already"),
        (Offer("what runs, under an older manifest", signed(RUNNING, sequence=4), RUNNING), Why.INTERNAL, "running already"),
        (Offer("below the floor", FOREIGN[2], firmware("0.9")), Why.DOWNGRADE, "the floor is 3"),
        (Offer("a floor above itself", above, NEWER), Why.DOWNGRADE, "floor 9 is above"),
    ]
    endpoint = HostileEndpoint([offer for offer, _, _ in offers])
    async with hostile_server(endpoint) as url, trio.open_nursery() as nursery:
        board = board_at(tmp_path, url, RUNNING, install=install)
        armed(board)
        before = flash_of(board)
        nursery.start_soon(board.run)
        with trio.fail_after(120):
            while not endpoint.done():
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    for offer, why, text in offers:
        result = endpoint.results[offer.name]
        assert (Why(result.code), text in result.text) == (why, True), (offer.name, result.text)
    numbers = [result.number for result in endpoint.results.values()]
    assert all(numbers) and len(set(numbers)) == len(numbers), "each is told from the one before"
    assert not endpoint.fetched
    assert flash_of(board) == before
    assert len(board.boots) == 1


async def test_updates_that_come_to_nothing_are_paused_for_twice_as_long_each_time_over_resets_too(tmp_path: Path) -> None:
    require("micropython")
    require("riscv-gcc")
    offer = Offer("hopeless", signed(NEWER), NEWER, chunks=[b"no chunk"])
    endpoint = HostileEndpoint([offer] * 20)
    settings = {"update_backoff_ms": 3_600_000}
    async with hostile_server(endpoint) as url, trio.open_nursery() as nursery:
        board = board_at(tmp_path, url, RUNNING, **settings)
        armed(board)
        kept = tmp_path / "nvs-dfud.json"
        nursery.start_soon(board.run)
        with trio.fail_after(120):
            while not any(status.defer for status in endpoint.statuses):
                await trio.sleep(0.05)
        assert json.loads(kept.read_text())["backoff"] == 1 << 8
        assert endpoint.fetched[offer.name] >= 3
        # As if it had gone on so: the seventh time. The board is reset, as a crash of its application would.
        kept.write_text(json.dumps({"backoff": 7 << 8}))
        endpoint.statuses.clear()
        fetched = endpoint.fetched[offer.name]
        board.reset()
        with trio.fail_after(120):
            while len(board.boots) < 2 or not any(status.defer for status in endpoint.statuses):
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    deferred = next(status.defer for status in endpoint.statuses if status.defer)
    assert deferred.reason.startswith("waiting after an update")
    assert 30 < deferred.retry_s <= 65, "64 s, less up to a half by chance"
    assert endpoint.fetched[offer.name] <= fetched + 3


async def answered(board: Board, mutator: Mutator, what: str | None, rounds: int) -> None:
    """Let the server answer so many requests, of one kind or of any; the device may not reset meanwhile, nor stop asking."""

    def asked() -> int:
        return mutator.asked.get(what, 0) if what else sum(mutator.asked.values())

    end = asked() + rounds
    with trio.fail_after(120 + rounds):
        while asked() < end and not (what == "enrol" and "command" in mutator.asked):  # a flipped byte may be a yes
            assert len(board.boots) <= 1, "\n".join(board.console[-40:])
            await trio.sleep(0.02)
    assert not any("app: running 1.0" in line for line in board.console)


Serving = HttpServer | CoapServer


async def fuzz(directory: Path, seed: int, rounds: int, server: type[Serving], **config: Any) -> None:
    require("micropython")
    require("riscv-gcc")
    rng = random.Random(seed)
    newer = Named("newer", signed(NEWER), NEWER)
    assert len(newer.sent) > 5
    mutator = Mutator(rng, FOREIGN, newer, enrols="claim" not in config)
    serving = server(mutator)
    where = f"seed {seed}, {rounds} rounds, {config}"
    print(where)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serving.run)
        settings = {"timeout_s": 0.3, "backoff_ms": 4, "update_backoff_ms": 20, "wait_s": 1, "payload": 4112, **config}
        board = board_at(directory, url, RUNNING, **settings)
        armed(board)
        before, outside = flash_of(board), flash_of(board, "ota_1", "dfu_stage")
        nursery.start_soon(board.run)
        if not mutator.enrols:
            await answered(board, mutator, "enrol", rounds // 4)
            mutator.enrols = True
            assert mutator.asked["enrol"] > rounds // 10, mutator.asked
        await answered(board, mutator, None, rounds)
        # What is drawn depends on what the board asks, and when: go on until it was let wait in more ways than one.
        for _ in range(FURTHER):
            if len(serving.held) < 2 or sum(serving.held.values()) < rounds // 100:
                await answered(board, mutator, None, rounds // 4)
        # Whoever has no signature of the publisher's does not get a single bit written.
        assert flash_of(board) == before, where
        mutator.signed = True
        await answered(board, mutator, None, rounds)
        assert flash_of(board, "ota_1", "dfu_stage") == outside, where
        assert flash_of(board) != before, "this far a publisher's signature does get him"
        assert mutator.asked["chunk"] > rounds // 25, mutator.asked
        mutator.honest = True
        with trio.move_on_after(120):
            while "app: confirmed 1.2" not in board.console:
                await trio.sleep(0.05)
        told = "\n".join([where, f"{mutator.asked}", f"boots: {board.boots}", *list(board.console)[-60:]])
        assert "app: confirmed 1.2" in board.console, told
        nursery.cancel_scope.cancel()
    print(mutator.asked, "held:", serving.held)
    assert len(serving.held) >= 2 and sum(serving.held.values()) >= rounds // 100, "it was let wait, too"
    ran = {line.split()[-1] for line in board.console if line.startswith("app: ")}
    assert ran == {"1.1", "1.2"}, where
    assert [boot.slot for boot in board.boots] == [0, 1], where


@pytest.mark.parametrize(
    ("seed", "rounds", "install"), [(1, 300, ""), *(pytest.param(s, 2_500, i, marks=EXHAUSTIVE) for s, i in LONG)]
)
async def test_nothing_that_a_server_sends_resets_a_device_or_gets_past_a_signature(
    tmp_path: Path, seed: int, rounds: int, install: str
) -> None:
    await fuzz(tmp_path, seed, rounds, HttpServer, install=install)


@pytest.mark.parametrize(("seed", "rounds"), [(1, 60), pytest.param(2, 1_000, marks=EXHAUSTIVE)])
async def test_nothing_that_answers_a_claim_code_resets_a_device_or_keeps_it_from_enrolling(
    tmp_path: Path, seed: int, rounds: int
) -> None:
    await fuzz(tmp_path, seed, rounds, HttpServer, claim="dfc_0123456789_" + "x" * 30, secret="")


@pytest.mark.parametrize(("seed", "rounds"), [(1, 150), *(pytest.param(s, 1_500, marks=EXHAUSTIVE) for s in (2, 3))])
async def test_nothing_that_a_coap_server_sends_resets_a_device_or_gets_past_a_signature(
    tmp_path: Path, seed: int, rounds: int
) -> None:
    await fuzz(tmp_path, seed, rounds, CoapServer, transport="coap", block=1024, ack_timeout_ms=30)


@pytest.mark.parametrize(("seed", "rounds"), [(1, 100), *(pytest.param(s, 1_500, marks=EXHAUSTIVE) for s in (2, 3))])
async def test_nothing_that_a_server_with_the_devices_keys_protects_resets_a_device_or_gets_past_a_signature(
    tmp_path: Path, seed: int, rounds: int
) -> None:
    await fuzz(tmp_path, seed, rounds, OscoreServer, transport="coap", block=1024, ack_timeout_ms=10, psk=PSK.hex())
