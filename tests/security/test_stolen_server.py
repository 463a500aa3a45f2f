"""The attacker has the server: its records, its keys, its place on the wire. The device is the real agent and bootloader."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from bootloader.sim.images import KEYS_AT, STATE_AT, envelope, image, key, key_record, state, trailer
from devicefw.sim.flash import partition
from dfud.package.build import build_delta, build_full
from dfud.wire.chunk import decode_chunk_untrusted, encode_chunk
from dfud.wire.manifest import FLAG_DOWNGRADE, decode_envelope_untrusted, encode_envelope, encode_manifest, key_id
from dfud.wire.messages import Code as Why
from dfud.wire.messages import Kind
from tests.bootloader.machine import NEW, OLD, SIGNER, boot, device
from tests.real_parts import require
from tests.security.hostile import (
    APP,
    PAYLOAD,
    HostileEndpoint,
    Offer,
    board_at,
    firmware,
    hostile_server,
    slot_bytes,
)

RUNNING, GENUINE, OTHER = firmware("1.0"), firmware("1.1"), firmware("1.2")
PUBLISHER, STRANGER = key(1), key(2)


def described(data: bytes, **fields: Any) -> bytes:
    """Return the publisher's own envelope of `data`."""
    return envelope(data, **{"signer": PUBLISHER, "app": APP, "version": "1.1", "sequence": 6, **fields})


def forged_fields(genuine: bytes, **fields: Any) -> bytes:
    """Change what a genuine manifest says and keep its signature."""
    found, manifest = decode_envelope_untrusted(genuine)
    changed = encode_manifest(msgspec.structs.replace(manifest, **fields))
    return encode_envelope(msgspec.structs.replace(found, manifest=changed))


def claiming_the_publishers_key(data: bytes) -> bytes:
    found, _ = decode_envelope_untrusted(described(data, signer=STRANGER))
    return encode_envelope(msgspec.structs.replace(found, key=key_id(PUBLISHER.public_key().public_bytes_raw())))


# Refused before a chunk is asked for: (what is sent, the reason that the device tells).
MANIFESTS = [
    ("unsigned", described(GENUINE, signer=None), Why.SIGNATURE),
    ("signed again by the thief", described(GENUINE, signer=STRANGER), Why.SIGNATURE),
    ("by the thief, in the publisher's name", claiming_the_publishers_key(GENUINE), Why.SIGNATURE),
    ("an older one, replayed", described(GENUINE, sequence=4), Why.DOWNGRADE),
    ("an older one with the flag added", forged_fields(described(GENUINE, sequence=4), flags=FLAG_DOWNGRADE), Why.SIGNATURE),
    ("for another hardware", described(GENUINE, hardware="esp32c3-board2"), Why.HARDWARE),
    ("of another app of the publisher's", described(GENUINE, app="pumps"), Why.SIGNATURE),
    ("with the image swapped", forged_fields(described(GENUINE), sha256=hashlib.sha256(OTHER).digest()), Why.SIGNATURE),
    ("adding the thief's key", forged_fields(described(GENUINE), add=(STRANGER.public_key().public_bytes_raw(),)), Why.SIGNATURE),
    ("larger than the slot", described(GENUINE, size=0x1B0000), Why.TOO_LARGE),
    ("no manifest at all", b"\x93\xc4\x00\xc4\x00\xc4\x00", Why.SIGNATURE),
]


def other_bytes(chunk: bytes) -> bytes:
    """Return a chunk that decodes without complaint, to something else: the thief makes its CRC right."""
    found = decode_chunk_untrusted(chunk)
    data = b"\x5a" * 4096
    (frame,) = [decode_chunk_untrusted(c) for c in build_full(data, PAYLOAD).chunks]
    payload = frame.payload
    return encode_chunk(msgspec.structs.replace(found, pages=1, crc=zlib.crc32(data), payload=payload))


def packages() -> list[tuple[Offer, Why]]:
    """The manifest is genuine, what is sent for it is not."""
    good = described(GENUINE)
    chunks = list(build_full(GENUINE, PAYLOAD).chunks)
    assert len(GENUINE) == len(OTHER)
    delta = build_delta(GENUINE, OTHER, PAYLOAD)
    torn = chunks[0][:-3] + bytes(3)
    stranger_base = hashlib.sha256(OTHER).digest()
    tampered = [other_bytes(chunks[0]), *chunks[1:]]
    return [
        (Offer("another image's package", good, OTHER), Why.IMAGE_HASH),
        (Offer("tampered chunk", good, GENUINE, chunks=tampered), Why.IMAGE_HASH),
        (Offer("torn chunk", good, GENUINE, chunks=[torn, *chunks[1:]]), Why.CHUNK),
        (Offer("for another base", good, GENUINE, kind=Kind.DELTA, base=stranger_base, chunks=list(delta.chunks)), Why.BASE),
        (Offer("another size", good, GENUINE, size=len(GENUINE) - 4096), Why.SIGNATURE),
    ]


def armed(board: Any) -> None:
    """Give the board what the factory gives it: the publisher's key, a signed image, and 5 as the sequence to go on from."""
    board.flash.program(KEYS_AT, key_record(PUBLISHER))
    offset, size = partition("ota_0")
    board.flash.program(offset + size - 4096, trailer(described(RUNNING, version="1.0", sequence=5)))
    board.flash.program(STATE_AT, state(slot=0, accept=5))


async def attack(directory: Path, offers: list[Offer]) -> tuple[HostileEndpoint, Any]:
    """Have the server make its offers, then the genuine one, which must still be taken."""
    require("micropython")
    require("riscv-gcc")
    last = Offer("genuine", described(GENUINE), GENUINE)
    endpoint = HostileEndpoint([*offers, last])
    async with hostile_server(endpoint) as url, trio.open_nursery() as nursery:
        board = board_at(directory, url, RUNNING)
        armed(board)
        nursery.start_soon(board.run)
        with trio.fail_after(120):
            while "app: confirmed 1.1" not in board.console:
                assert len(board.boots) <= 2, board.console
                if len(board.boots) == 1 and not endpoint.fetched:
                    assert slot_bytes(board, 1, 4096) == b"\xff" * 4096, "the idle slot is written by a chunk only"
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    ran = {line.split()[-1] for line in board.console if line.startswith("app: ")}
    assert ran == {"1.0", "1.1"}, board.console
    return endpoint, board


async def test_no_manifest_but_the_publishers_newest_is_even_asked_chunks_for(tmp_path: Path) -> None:
    offers = [Offer(name, data, GENUINE, size=0x1B0000 if "larger" in name else None) for name, data, _ in MANIFESTS]
    endpoint, _ = await attack(tmp_path, offers)
    told = {name: Why(endpoint.results[name].code) for name, _, _ in MANIFESTS}
    assert told == {name: why for name, _, why in MANIFESTS}
    assert set(endpoint.fetched) == {"genuine"}


async def test_no_package_for_a_genuine_manifest_makes_the_device_boot_anything_else(tmp_path: Path) -> None:
    offers = packages()
    endpoint, board = await attack(tmp_path, [offer for offer, _ in offers])
    told = {offer.name: Why(endpoint.results[offer.name].code) for offer, _ in offers}
    assert told == {offer.name: why for offer, why in offers}
    assert slot_bytes(board, 1, len(GENUINE)) == GENUINE


async def test_a_device_without_keys_takes_what_the_server_sends(tmp_path: Path) -> None:
    """What the threat model says the thief can do: an open device has nothing to judge by."""
    require("micropython")
    require("riscv-gcc")
    endpoint = HostileEndpoint([Offer("unsigned", described(GENUINE, signer=None), GENUINE)])
    async with hostile_server(endpoint) as url, trio.open_nursery() as nursery:
        board = board_at(tmp_path, url, RUNNING)
        nursery.start_soon(board.run)
        with trio.fail_after(120):
            while "app: confirmed 1.1" not in board.console:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()


async def test_the_thief_can_withhold_updates_and_read_the_devices_secret(tmp_path: Path) -> None:
    """What he can do: say `wait` for ever, and see what devices log in with."""
    require("micropython")
    require("riscv-gcc")
    endpoint = HostileEndpoint([])
    async with hostile_server(endpoint) as url, trio.open_nursery() as nursery:
        board = board_at(tmp_path, url, RUNNING, wait_s=1)
        nursery.start_soon(board.run)
        with trio.fail_after(120):
            while len(endpoint.statuses) < 2:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert any(a.startswith(b"Basic ") for a in endpoint.authorizations)
    assert len(board.boots) == 1


@pytest.mark.parametrize(
    "planted",
    [
        envelope(NEW, sequence=2),
        envelope(NEW, signer=key(2), sequence=2),
        forged_fields(envelope(image("x"), signer=SIGNER, sequence=2), sha256=hashlib.sha256(NEW).digest(), size=len(NEW)),
        envelope(OLD, signer=SIGNER, sequence=2),
        b"",
    ],
    ids=["unsigned", "by a stranger", "altered", "of another image", "none"],
)
def test_the_bootloader_refuses_what_was_written_past_the_agent(planted: bytes) -> None:
    """Whoever got code to run on the device and wrote the idle slot himself still does not get it booted."""
    flash = device(signed=True, phase=1)
    flash.install(1, NEW, planted or b"\xff")
    found = boot(flash)
    assert found.slot == 0
    assert flash.state()["slot"] == 0
