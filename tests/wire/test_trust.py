"""A signature is worth what the app's keys make of it now."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dfud.wire.manifest import Manifest, sign, unsigned
from dfud.wire.trust import Trust, signing_of, trust_of, trust_problem

MINE, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
MANIFEST = Manifest("a", "1.0", "esp32c3", 1, 4, bytes(32))


def spec(*keys: Ed25519PrivateKey, mode: str = "required") -> dict[str, Any]:
    return {
        "signing": {"mode": mode, "keys": [base64.b64encode(key.public_key().public_bytes_raw()).decode() for key in keys]}
    }


def test_a_key_that_is_taken_from_the_app_ends_what_it_signed() -> None:
    envelope = sign(MANIFEST, MINE)
    assert trust_of(spec(MINE), envelope) is Trust.SIGNED
    assert trust_of(spec(OTHER, MINE), envelope) is Trust.SIGNED
    assert trust_of(spec(OTHER), envelope) is Trust.UNTRUSTED
    assert trust_of({}, envelope) is Trust.UNTRUSTED


@pytest.mark.parametrize(
    ("of", "envelope", "refused"),
    [
        (spec(MINE), sign(MANIFEST, MINE), ""),
        (spec(OTHER), sign(MANIFEST, MINE), "which is none of its app's"),
        (spec(OTHER, mode="optional"), sign(MANIFEST, MINE), "which is none of its app's"),
        (spec(MINE), unsigned(MANIFEST), "signed firmware only"),
        (spec(MINE, mode="optional"), unsigned(MANIFEST), ""),
        ({}, unsigned(MANIFEST), "signed firmware only"),
        (spec(MINE), b"no envelope", "its manifest cannot be read: not a msgpack message"),
    ],
)
def test_what_may_be_sent_is_judged_by_mode_and_keys(of: dict[str, Any], envelope: bytes, refused: str) -> None:
    assert refused in trust_problem(of, "1.0", envelope) and bool(refused) is bool(trust_problem(of, "1.0", envelope))


@pytest.mark.parametrize("signing", [None, 1, [], {"keys": 7}, {"keys": ["AAAA", 1, None, "!"]}, {"mode": ["optional"]}])
def test_no_signing_section_is_more_than_it_says(signing: Any) -> None:
    assert signing_of({"signing": signing}) == (True, ())
