"""Block-wise transfers, RFC 7959: reading and writing the option, putting bodies together, cutting them up. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import msgspec

from dfud_coap.message import Code, uint

LIFETIME_S = 93.0  # RFC 7252, 4.8.2: MAX_TRANSMIT_WAIT; after that a peer has given up
SZX_MAX = 6  # 1024 bytes; 7 is for TCP (RFC 8323)
NUMBER_MAX = (1 << 20) - 1


class BlockError(Exception):
    """code: what to answer."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class Block(msgspec.Struct, frozen=True):
    number: int
    more: bool
    szx: int

    @property
    def size(self) -> int:
        return 16 << self.szx

    def value(self) -> bytes:
        return uint(self.number << 4 | self.more << 3 | self.szx)


def read_block_untrusted(value: bytes) -> Block:
    """Read the value of Block1 or Block2; raises BlockError."""
    if len(value) > 3:
        raise BlockError(Code.BAD_OPTION, f"a block option of {len(value)} bytes, expected at most 3")
    number = int.from_bytes(value, "big")
    if number & 7 == 7:
        raise BlockError(Code.BAD_REQUEST, "block size exponent 7, expected 0 to 6")
    return Block(number >> 4, bool(number >> 3 & 1), number & 7)


def szx_of(size: int) -> int:
    """Return the exponent of the largest block that is not larger than `size` (16 to 1024)."""
    return min(SZX_MAX, max(0, size.bit_length() - 5))


class _Held(msgspec.Struct):
    until_s: float
    address: str
    body: bytearray


class Bodies:
    """Bodies of requests on their way in blocks: `count_max` of them, the oldest is forgotten first; `address_max` from
    one address, of which the oldest is forgotten for a new one, too."""

    def __init__(self, count_max: int, address_max: int, body_max: int) -> None:
        self._count_max, self._address_max, self._body_max = count_max, address_max, body_max
        self._held: OrderedDict[Hashable, _Held] = OrderedDict()
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def has_room(self, address: str, now_s: float) -> bool:
        """Say whether a new one from an address would push out nobody else's."""
        self._forget_old(now_s)
        return len(self._held) < self._count_max or self._counts[address] >= self._address_max

    def add(self, key: Hashable, address: str, block: Block, payload: bytes, now_s: float) -> bytes | None:
        """Take one block; return the whole body with the last one, else None. Raises BlockError (4.00, 4.08, 4.13);
        what was held before is then forgotten, unless the block was only out of order."""
        self._forget_old(now_s)
        if block.more and len(payload) != block.size:
            self._pop(key)
            raise BlockError(
                Code.BAD_REQUEST, f"a block of {len(payload)} bytes that is not the last, expected {block.size}"
            )
        at = block.number * block.size
        if at + len(payload) > self._body_max:
            self._pop(key)
            raise BlockError(Code.TOO_LARGE, f"at most {self._body_max} bytes")
        if block.number == 0:
            self._pop(key)
            held = _Held(0.0, address, bytearray())
        else:
            found = self._held.get(key)
            if found is None:
                raise BlockError(Code.INCOMPLETE, "the blocks before this one are not here: start with block 0")
            held = found
        if at > len(held.body):
            raise BlockError(Code.INCOMPLETE, f"block at byte {at}, expected {len(held.body)}")
        if at == len(held.body):
            held.body += payload
        elif held.body[at : at + len(payload)] != payload:
            self._pop(key)
            raise BlockError(Code.INCOMPLETE, "a block came again with other bytes: start with block 0")
        if not block.more:
            self._pop(key)
            return bytes(held.body)
        self._pop(key)
        self._keep(key, held, now_s)
        return None

    def _keep(self, key: Hashable, held: _Held, now_s: float) -> None:
        if self._counts[held.address] >= self._address_max:
            self._pop(next(k for k, h in self._held.items() if h.address == held.address))
        if len(self._held) >= self._count_max:
            self._pop(next(iter(self._held)))
        held.until_s = now_s + LIFETIME_S
        self._held[key] = held
        self._counts[held.address] += 1

    def _pop(self, key: Hashable) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._counts[held.address] -= 1
            if not self._counts[held.address]:
                del self._counts[held.address]

    def _forget_old(self, now_s: float) -> None:
        while self._held:
            key, held = next(iter(self._held.items()))
            if held.until_s > now_s:
                return
            self._pop(key)


T = TypeVar("T")


class Kept(Generic[T]):
    """Answers whose later blocks will be asked for: `count_max` of them for 93 s; the oldest is forgotten first."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._kept: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, key: Hashable, what: T, now_s: float) -> None:
        self._kept.pop(key, None)
        self._kept[key] = (now_s + LIFETIME_S, what)
        while len(self._kept) > self._count_max:
            self._kept.popitem(last=False)

    def get(self, key: Hashable, now_s: float) -> T | None:
        while self._kept and next(iter(self._kept.values()))[0] <= now_s:
            self._kept.popitem(last=False)
        found = self._kept.get(key)
        return found[1] if found is not None else None


def cut(body: bytes, asked: Block | None, szx_max: int) -> tuple[bytes, Block | None]:
    """Return the part of an answer that is to be sent, and its Block2 if it needs one. Raises BlockError (4.02).

    A block that was asked for larger than szx_max is cut smaller, from the same byte on.
    """
    if asked is None:
        size = 16 << szx_max
        return (body, None) if len(body) <= size else (body[:size], Block(0, True, szx_max))
    szx = min(asked.szx, szx_max)
    number = asked.number << (asked.szx - szx)
    size = 16 << szx
    start = number * size
    if number and start >= len(body):
        raise BlockError(Code.BAD_OPTION, f"block at byte {start} of {len(body)}")
    return body[start : start + size], Block(number, start + size < len(body), szx)
