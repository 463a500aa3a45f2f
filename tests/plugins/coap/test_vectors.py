"""tests/vectors/coap.json: RFC 7252's examples, and exchanges in the manner of ETSI's plugtests (their names in front)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dfud_coap.block import Block, BlockError, read_block_untrusted
from dfud_coap.message import ACK, CON, NON, RST, MessageError, decode_untrusted, encode, encode_tail
from dfud_coap.oscore import Context, read_option_untrusted
from dfud_coap.translate import Answer

from dfud.api import Code, Reply
from tests.plugins.coap.virtual import Virtual

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "coap.json").read_text())
TYPES = {"CON": CON, "NON": NON, "ACK": ACK, "RST": RST}


def named(found: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(v, id=v["name"]) for v in found]


@pytest.mark.parametrize("vector", named(VECTORS["messages"]))
def test_a_message_is_read_and_written(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    message = decode_untrusted(data)
    kind, detail = vector["code"].split(".")
    assert (message.type, message.code) == (TYPES[vector["type"]], int(kind) << 5 | int(detail))
    assert (message.message_id, message.token.hex()) == (vector["message_id"], vector["token"])
    assert [[number, value.hex()] for number, value in message.options] == vector["options"]
    assert message.payload.hex() == vector["payload"]
    assert encode(message) == data


@pytest.mark.parametrize(("data", "why"), VECTORS["broken"])
def test_what_is_no_message_is_refused(data: str, why: str) -> None:
    with pytest.raises(MessageError):
        decode_untrusted(bytes.fromhex(data))


def test_block_options() -> None:
    for value, number, more, szx in VECTORS["blocks"]:
        assert read_block_untrusted(bytes.fromhex(value)) == Block(number, more, szx)
        assert Block(number, more, szx).value().hex() == value
    for value in VECTORS["broken_blocks"]:
        with pytest.raises(BlockError):
            read_block_untrusted(bytes.fromhex(value))


@pytest.mark.parametrize("vector", VECTORS["oscore"]["requests"], ids=lambda v: str(v["sequence"]))
def test_a_protected_request_is_opened(vector: dict[str, Any]) -> None:
    option = bytes.fromhex(vector["option"])
    header = read_option_untrusted(option)
    assert int.from_bytes(header.partial_iv, "big") == vector["sequence"]
    assert header.identity == "dev1@app1" and header.id_context.hex() == VECTORS["oscore"]["id_context"]
    context = Context(header, bytes.fromhex(VECTORS["oscore"]["master_secret"]), 7)
    observe = any(number == 6 for number, _ in vector["options"])
    inner, request = context.unprotect_untrusted(
        vector["outer_code"], option, bytes.fromhex(vector["ciphertext"]), observe
    )
    assert inner.code == vector["code"] and inner.payload.hex() == vector["payload"]
    assert [[n, v.hex()] for n, v in inner.options] == vector["options"]
    first = context.protect(Answer(0x45, [], b"answer"), request)
    second = context.protect(Answer(0x45, [], b"answer"), request, own_iv=True)
    assert first.options == [(9, b"")] and second.options == [(9, b"\1\7")]
    assert first.payload != second.payload and len(first.payload) == 1 + 1 + 6 + 8


@pytest.mark.parametrize("vector", named(VECTORS["exchanges"]))
def test_an_exchange(vector: dict[str, Any]) -> None:
    world = Virtual()
    seen = 0
    for step in vector["steps"]:
        # What comes before the step's time has to be in a step of its own.
        world.until(step["at_s"])
        if "in" in step:
            world.take(bytes.fromhex(step["in"]))
        elif "wake" in step:
            command, body = step["wake"]
            assert world.endpoint.wake(Reply(Code.COMMAND, command, body.encode())) >= 1
            world.settle()
        elif "taken" in step:
            assert len(world.endpoint.requests) == step["taken"]
        elif "out" in step:
            assert len(world.sent) > seen, f"nothing was sent at {step['at_s']} s"
            at_s, data = world.sent[seen]
            assert (at_s, data.hex()) == (step["at_s"], step["out"])
            seen += 1
        else:
            assert step["silent"]
        if "out" not in step and "in" not in step and "wake" not in step:
            assert [d.hex() for _, d in world.sent[seen:]] == []
    assert [d.hex() for _, d in world.sent[seen:]] == []


def test_the_vectors_are_written_as_this_encoder_writes() -> None:
    """Options of the exchanges are in ascending order, so that the bytes can be compared."""
    for vector in VECTORS["messages"]:
        options = [(number, bytes.fromhex(value)) for number, value in vector["options"]]
        assert bytes.fromhex(vector["hex"]).endswith(encode_tail(options, bytes.fromhex(vector["payload"])))
