"""devicefw/dfu/ed25519.py as plain Python: its constants; what it answers, beside another implementation and the definition."""

from __future__ import annotations

import hashlib
import importlib.util
import random
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PATH = Path(__file__).parents[2] / "devicefw" / "dfu" / "ed25519.py"
_spec = importlib.util.spec_from_file_location("agent_ed25519", PATH)
assert _spec is not None and _spec.loader is not None
ours = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ours)

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def test_the_constants_are_those_of_rfc_8032() -> None:
    assert (P, L, D, pow(2, (P - 1) // 4, P)) == (ours._P, ours._L, ours._D, ours._I)
    y = 4 * pow(5, -1, P) % P
    assert ours._point(y.to_bytes(32, "little")) == (ours._X, ours._Y) and y == ours._Y


def test_sha_512_is_hashlib_s_for_every_length_around_a_block() -> None:
    for length in [*range(260), 500, 1023]:
        data = random.Random(length).randbytes(length)
        assert ours.sha512(data) == hashlib.sha512(data).digest(), length


def test_what_another_implementation_signs_verifies_and_nothing_else() -> None:
    rng = random.Random(8032)
    for i in range(60):
        key = Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
        public = key.public_key().public_bytes_raw()
        message = rng.randbytes(rng.randrange(300))
        signature = key.sign(message)
        assert ours.verify(public, message, signature), i
        wrong = bytearray(signature)
        wrong[rng.randrange(64)] ^= 1 << rng.randrange(8)
        assert not ours.verify(public, message, bytes(wrong)), i
        assert not ours.verify(public, message + b"x", signature), i
        high = int.from_bytes(signature[32:], "little") + L
        assert not ours.verify(public, message, signature[:32] + high.to_bytes(32, "little")), "s is not below L"


def add(p: Point, q: Point) -> Point:
    """The group's law as it is defined: RFC 8032, 5.1.4, affine."""
    product = D * p[0] * q[0] * p[1] * q[1] % P
    x = (p[0] * q[1] + q[0] * p[1]) * pow(1 + product, -1, P)
    y = (p[1] * q[1] + p[0] * q[0]) * pow(1 - product, -1, P)
    return x % P, y % P


def times(k: int, p: Point) -> Point:
    found: Point = (0, 1)
    while k:
        if k & 1:
            found = add(found, p)
        p = add(p, p)
        k >>= 1
    return found


def encoded(p: Point) -> bytes:
    return (p[1] | (p[0] & 1) << 255).to_bytes(32, "little")


def test_keys_of_small_order_give_what_the_definition_gives() -> None:
    """They pass through the neutral point and the one of order two, where quick formulas and shortcuts go wrong."""
    base: Point = (ours._X, ours._Y)
    order8 = next(p for y in range(2, 60) if (p := ours._point(y.to_bytes(32, "little"))) and times(4, times(L, p))[1] != 1)
    order8 = times(L, order8)
    small = [times(k, order8) for k in range(8)]
    assert len(set(small)) == 8 and times(8, order8) == (0, 1)
    rng = random.Random(5)
    accepted = 0
    for a in small:
        for s in (0, 1, 8, 15, 16, 2**252, L - 1, rng.randrange(L)):
            for r in (times(s, base), *rng.sample(small, 2)):
                message = rng.randbytes(8)
                k = int.from_bytes(hashlib.sha512(encoded(r) + encoded(a) + message).digest(), "little") % L
                right = add(times(s, base), times(k, (-a[0] % P, a[1]))) == r
                signature = encoded(r) + s.to_bytes(32, "little")
                assert ours.verify(encoded(a), message, signature) == right, (a, s, r)
                accepted += right
    assert accepted > 10
