"""OSCORE contexts: which numbers and Echo values may be used after one was forgotten."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from dfud_coap.message import Code, Message
from dfud_coap.oscore import (
    DEVICE_ID,
    EPOCH_S,
    LEAD_MS,
    WINDOW,
    Context,
    Contexts,
    Header,
    OscoreError,
    Window,
    aad_of,
    derive,
    nonce_of,
)
from dfud_coap.translate import Answer

SECRET = bytes.fromhex("0102030405060708090a0b0c0d0e0f10")  # RFC 8613, appendix C
SALT = bytes.fromhex("9e7ca92223786340")
COMMON_IV = bytes.fromhex("4622d4dd6d944168eefb54987c")


@pytest.mark.parametrize(
    ("id_context", "sender", "recipient", "common_iv"),
    [
        ("", "f0910ed7295e6ad4b54fc793154302ff", "ffb14e093c94c9cac9471648b4f98710", "4622d4dd6d944168eefb54987c"),
        (
            "37cbf3210017a2d3",
            "af2a1300a5e95788b356336eeecd2b92",
            "e39a0c7c77b43f03b4b39ab9a268699f",
            "2ca58fb85ff1b81c0b7181b85e",
        ),
    ],
)
def test_keys_are_derived_as_in_appendix_c_1_and_c_3(id_context: str, sender: str, recipient: str, common_iv: str) -> None:
    context = bytes.fromhex(id_context)
    assert derive(SECRET, b"", context, "Key", 16, SALT).hex() == sender
    assert derive(SECRET, b"\1", context, "Key", 16, SALT).hex() == recipient
    assert derive(SECRET, b"", context, "IV", 13, SALT).hex() == common_iv


@pytest.mark.parametrize(
    ("key", "nonce_id", "nonce_iv", "nonce", "plain", "cipher"),
    [  # C.4, C.7 and C.8: a request, its answer with the same nonce, and its answer with a Partial IV of the server's own
        ("f0910ed7295e6ad4b54fc793154302ff", "", "14", "4622d4dd6d944168eefb549868", "01b3747631", "612f1092f1776f1c1668b3825e"),
        (
            "ffb14e093c94c9cac9471648b4f98710",
            "",
            "14",
            "4622d4dd6d944168eefb549868",
            "45ff48656c6c6f20576f726c6421",
            "dbaad1e9a7e7b2a813d3c31524378303cdafae119106",
        ),
        (
            "ffb14e093c94c9cac9471648b4f98710",
            "01",
            "00",
            "4722d4dd6d944169eefb54987c",
            "45ff48656c6c6f20576f726c6421",
            "4d4c13669384b67354b2b6175ff4b8658c666a6cf88e",
        ),
    ],
)
def test_messages_are_protected_as_in_appendix_c(
    key: str, nonce_id: str, nonce_iv: str, nonce: str, plain: str, cipher: str
) -> None:
    aad = aad_of(b"", b"\x14")
    assert aad.hex() == "8368456e63727970743040488501810a40411440"
    made = nonce_of(COMMON_IV, bytes.fromhex(nonce_id), bytes.fromhex(nonce_iv))
    assert made.hex() == nonce
    assert AESCCM(bytes.fromhex(key), 8).encrypt(made, bytes.fromhex(plain), aad).hex() == cipher


def test_the_replay_window_takes_each_number_once_and_none_that_is_too_old() -> None:
    window = Window()
    for number in (5, 3, 0, WINDOW + 3):
        assert window.is_new(number)
        window.strike_out(number)
        assert not window.is_new(number)
    assert window.is_new(4) and not window.is_new(3)
    window.strike_out(WINDOW + 4)
    assert not window.is_new(4) and window.is_new(6)
    window.begin_with(100)
    assert not window.is_new(100) and not window.is_new(99) and window.is_new(101)


def test_no_nonce_is_used_twice() -> None:
    header = Header(b"\x07", b"\1" * 8 + b"d@a", "d@a")
    context = Context(header, b"k" * 16, 3)
    key = derive(b"k" * 16, DEVICE_ID, header.id_context, "Key", 16)
    common_iv = derive(b"k" * 16, b"", header.id_context, "IV", 13)
    payload = AESCCM(key, 8).encrypt(nonce_of(common_iv, DEVICE_ID, b"\x07"), b"\x02", aad_of(DEVICE_ID, b"\x07"))
    option = bytes([0x19, 0x07, len(header.id_context)]) + header.id_context + DEVICE_ID
    asked, request = context.unprotect_untrusted(int(Code.POST), option, payload, observe=False)
    assert isinstance(asked, Message) and asked.code == Code.POST
    with pytest.raises(OscoreError, match="Replay"):
        context.unprotect_untrusted(int(Code.POST), option, payload, observe=False)
    answers = [context.protect(Answer(int(Code.CHANGED)), request) for _ in range(3)]
    assert [dict(answer.options)[9] for answer in answers] == [b"", b"\x01\x03", b"\x01\x04"]
    assert len({answer.payload for answer in answers}) == 3 and context.sequence == 5


def test_no_number_is_used_twice_and_no_old_echo_counts_after_a_context_was_forgotten() -> None:
    contexts = Contexts(1)
    headers = [Header(b"\0", bytes([n]) * 8 + b"d@a", "d@a") for n in range(3)]
    first = contexts.derive(headers[0], b"k" * 16, EPOCH_S + 10.0)
    assert first is not None and first.sequence == 10_000
    # Challenged again and again by the same message that is replayed: other numbers, and soon nothing.
    replayed = [contexts.derive(headers[0], b"k" * 16, EPOCH_S + 10.0) for _ in range(LEAD_MS + 3)]
    assert [c and c.sequence for c in replayed] == [*range(10_001, 10_001 + LEAD_MS), None, None, None]
    contexts.establish(first, made_s=100.0)
    assert contexts.get(headers[0].id_context) is first and contexts.is_fresh(99.0) and not first.forgotten
    first.sequence = 50_000  # a lively one
    second = contexts.derive(headers[1], b"k" * 16, EPOCH_S + 11.0)
    assert second is not None
    contexts.establish(second, made_s=101.0)  # there is room for one
    assert contexts.get(headers[0].id_context) is None and len(contexts) == 1 and first.forgotten
    # The same context again: not below what was used; and what established it is not fresh again.
    assert contexts.derive(headers[0], b"k" * 16, EPOCH_S + 12.0) is None
    again = contexts.derive(headers[0], b"k" * 16, EPOCH_S + 51.0)
    assert again is not None and again.sequence == 51_000
    assert not contexts.is_fresh(100.0) and contexts.is_fresh(100.1) and not contexts.is_fresh(None)
