"""OSCORE (RFC 8613) for the server: contexts out of pre-shared keys, and who may be forgotten when. No I/O.

AES-CCM and HKDF are `cryptography`'s. This module decides which context a request belongs to, whether it is fresh (Echo, RFC 9175
and RFC 8613 appendix B.1.2), and that no nonce is used twice, also after a context was forgotten and derived again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dfud_coap.message import Code, Message, MessageError, Option, decode_tail_untrusted
from dfud_coap.translate import Answer, Fetching

KEY_BYTES = 16
IV_BYTES = 13
TAG_BYTES = 8
AES_CCM_16_64_128 = 10  # RFC 9053, 4.2
NONCE_BYTES = 8  # of the ID Context: what the device chooses at each boot
SERVER_ID = b"\0"
DEVICE_ID = b"\1"
WINDOW = 32
PLACES = 4096
LEAD_MS = 100
EPOCH_S = 1735689600  # 2025-01-01: Partial IVs begin at the milliseconds since then; 40 bits last until 2059


class OscoreError(Exception):
    """The request cannot be taken. answer: the code to send back unprotected."""

    def __init__(self, answer: Code, text: str) -> None:
        super().__init__(text)
        self.answer = answer


class Header(msgspec.Struct, frozen=True):
    """What the option of a request says."""

    partial_iv: bytes
    id_context: bytes
    identity: str


def _bad_option() -> OscoreError:
    return OscoreError(Code.BAD_OPTION, "OSCORE option, expected Partial IV, kid context and kid")


def read_option_untrusted(value: bytes) -> Header:
    """Read the OSCORE option of a request (RFC 8613, 6.1); raises OscoreError."""
    size = value[0] & 7 if value else 0
    if not 1 <= size <= 5 or value[0] & 0xF8 != 0x18 or len(value) < 1 + size + 1:
        raise _bad_option()
    length, end = value[1 + size], 2 + size + value[1 + size]
    if value[end:] != DEVICE_ID or length <= NONCE_BYTES:
        raise _bad_option()
    id_context = value[2 + size : end]
    try:
        return Header(value[1 : 1 + size], id_context, id_context[NONCE_BYTES:].decode())
    except UnicodeDecodeError:
        raise _bad_option() from None


def _head(major: int, size: int) -> bytes:
    """Return the head of a CBOR item (RFC 8949, 3) of up to 64 KB."""
    if size < 24:
        return bytes([major << 5 | size])
    return bytes([major << 5 | 24, size]) if size < 256 else bytes([major << 5 | 25, size >> 8, size & 255])


def _bytes(value: bytes) -> bytes:
    return _head(2, len(value)) + value


def derive(secret: bytes, identity: bytes, id_context: bytes, what: str, size: int, salt: bytes = b"") -> bytes:
    """Return a key or the Common IV of a context (RFC 8613, 3.2.1): HKDF over the CBOR array [id, id_context, alg, type, L]."""
    info = b"\x85" + _bytes(identity) + (_bytes(id_context) if id_context else b"\xf6") + _head(0, AES_CCM_16_64_128)
    info += _head(3, len(what)) + what.encode() + _head(0, size)
    return HKDF(hashes.SHA256(), size, salt, info).derive(secret)


def nonce_of(common_iv: bytes, identity: bytes, partial_iv: bytes) -> bytes:
    """Return the nonce (RFC 8613, 5.2): length of the identity, identity and Partial IV, padded, over the Common IV."""
    padded = bytes([len(identity)]) + identity.rjust(IV_BYTES - 6, b"\0") + partial_iv.rjust(5, b"\0")
    return (int.from_bytes(padded, "big") ^ int.from_bytes(common_iv, "big")).to_bytes(IV_BYTES, "big")


def aad_of(identity: bytes, partial_iv: bytes) -> bytes:
    """Return what is authenticated with a message (RFC 8613, 5.4): identity and partial_iv are the request's."""
    external = b"\x85\x01" + b"\x81" + _head(0, AES_CCM_16_64_128) + _bytes(identity) + _bytes(partial_iv) + b"\x40"
    return b"\x83\x68Encrypt0\x40" + _bytes(external)


# What is authenticated with a request of a device, but for its Partial IV, which may have so many bytes, and the byte behind that.
_AADS = tuple(aad_of(DEVICE_ID, bytes(size))[: -size - 1] for size in range(1, 6))


class RequestIds:
    """What answers to a request need of it. can_reuse_nonce: none was sent yet, and it is no replay."""

    __slots__ = ("aad", "can_reuse_nonce", "fetch", "partial_iv")

    def __init__(self, partial_iv: bytes, aad: bytes, *, fetch: bool) -> None:
        self.partial_iv = partial_iv
        self.aad = aad
        self.fetch = fetch
        self.can_reuse_nonce = True


class Window:
    """The replay window (RFC 8613, 7.4): `first` is the lowest number that may still come, bit n of `seen` stands for first + n."""

    __slots__ = ("first", "seen")

    def __init__(self) -> None:
        self.first = 0
        self.seen = 0

    def is_new(self, number: int) -> bool:
        return number >= self.first and not (self.seen >> (number - self.first)) & 1

    def strike_out(self, number: int) -> None:
        beyond = number - (self.first + WINDOW - 1)
        if beyond > 0:
            self.first += beyond
            self.seen >>= beyond
        self.seen |= 1 << (number - self.first)

    def take_over(self, first: int, seen: int) -> None:
        """Go on where another process stood."""
        self.first, self.seen = first, seen

    def begin_with(self, number: int) -> None:
        """This number has just been seen, and is known to be fresh: nothing before it may come any more."""
        self.first, self.seen = number, 1


def read_inner_untrusted(plain: bytes, observe: bool) -> Message:
    """Read an inner request. observe: whether Observe stands outside, too; what stands inside alone counts for nothing."""
    try:
        options, body = decode_tail_untrusted(plain, 1)
    except MessageError as error:
        raise OscoreError(Code.BAD_REQUEST, str(error)) from None
    if not observe:
        options = [o for o in options if o[0] != Option.OBSERVE]
    return Message(0, plain[0], 0, b"", options, body)


class Context:
    """One boot of one device. `since_s`: when the Echo that proved it was made. `forgotten`: another one may take its place,
    so it must not use numbers of its own any more. `sequence`: the next number of its own; `step`: from there to the one after it.

    `lent`: another process takes its requests now; this one answers what it has taken, and notifies. `epoch`, `sure`: Ownership's.
    `fetching`: the chunk that its device is fetching."""

    __slots__ = (
        "_device_nonce",
        "_recipient",
        "_sender",
        "_server_nonce",
        "_window",
        "epoch",
        "fetching",
        "forgotten",
        "id_context",
        "identity",
        "key",
        "lent",
        "sequence",
        "since_s",
        "step",
        "sure",
    )

    def __init__(self, header: Header, key: bytes, sequence: int, step: int = 1) -> None:
        self.identity = header.identity
        self.id_context = header.id_context
        self.key = key
        self.since_s = 0.0
        self.forgotten = False
        self.sequence = sequence
        self.step = step
        self.lent = False
        self.epoch = 0
        self.sure = 0
        self._window = Window()
        self.fetching: Fetching | None = None
        common_iv = derive(key, b"", header.id_context, "IV", IV_BYTES)
        # A Partial IV stands at the end of a nonce, so the number is what is left to be put over these.
        self._device_nonce = int.from_bytes(nonce_of(common_iv, DEVICE_ID, b"\0"), "big")
        self._server_nonce = int.from_bytes(nonce_of(common_iv, SERVER_ID, b"\0"), "big")
        self._sender = AESCCM(derive(key, SERVER_ID, header.id_context, "Key", KEY_BYTES), TAG_BYTES)
        self._recipient = AESCCM(derive(key, DEVICE_ID, header.id_context, "Key", KEY_BYTES), TAG_BYTES)

    def unprotect_untrusted(
        self, code: int, option: bytes, payload: bytes, observe: bool
    ) -> tuple[Message, RequestIds]:
        """Return the inner request and what answers to it need. Raises OscoreError; the context is then unchanged."""
        plain, request = self.decrypt_untrusted(read_option_untrusted(option), code, payload)
        return read_inner_untrusted(plain, observe), request

    def decrypt_untrusted(self, header: Header, code: int, payload: bytes) -> tuple[bytes, RequestIds]:
        """Return the inner request as bytes, which has not come before, and what answers to it need. Raises OscoreError."""
        if header.id_context != self.id_context:
            raise OscoreError(Code.UNAUTHORIZED, "Security context not found")
        partial_iv, window = header.partial_iv, self._window
        number = int.from_bytes(partial_iv, "big")
        if not window.is_new(number):
            raise OscoreError(Code.UNAUTHORIZED, "Replay detected")
        aad = b"%b%b\x40" % (_AADS[len(partial_iv) - 1], partial_iv)
        try:
            plain = self._recipient.decrypt((self._device_nonce ^ number).to_bytes(IV_BYTES, "big"), payload, aad)
        except (InvalidTag, ValueError):
            raise OscoreError(Code.UNAUTHORIZED, "Security context not found") from None
        if not plain:
            raise OscoreError(Code.UNAUTHORIZED, "Security context not found")
        window.strike_out(number)
        return plain, RequestIds(partial_iv, aad, fetch=code == Code.FETCH)

    @property
    def window(self) -> Window:
        return self._window

    def fresh_from(self, header: Header) -> None:
        """The request just unprotected is known to be fresh: nothing before it may come any more."""
        self._window.begin_with(int.from_bytes(header.partial_iv, "big"))

    def protect(
        self, answer: Answer, request: RequestIds, *, own_iv: bool = False, observe: bytes | None = None
    ) -> Answer:
        """Return the outer answer. own_iv: this is not the first answer to the request (or the request may be a replay), so
        its nonce must not be used. observe: value of the outer option."""
        if own_iv and not self.forgotten:
            request.can_reuse_nonce = False
        if request.can_reuse_nonce:
            request.can_reuse_nonce = False
            value = b""
            nonce = (self._device_nonce ^ int.from_bytes(request.partial_iv, "big")).to_bytes(IV_BYTES, "big")
        else:
            number, self.sequence = self.sequence, self.sequence + self.step
            partial_iv = number.to_bytes(5, "big").lstrip(b"\0") or b"\0"
            value = bytes([len(partial_iv)]) + partial_iv
            nonce = (self._server_nonce ^ number).to_bytes(IV_BYTES, "big")
        payload = self._sender.encrypt(nonce, bytes([answer.code]) + answer.tail(), request.aad)
        options = [(int(Option.OSCORE), value)]
        if observe is not None:
            options.append((Option.OBSERVE, observe))
        return Answer(int(Code.CONTENT if request.fetch else Code.CHANGED), options, payload)

    def seal(self, plain: bytes, request: RequestIds) -> tuple[int, bytes]:
        """As protect(), for the first answer to a request: return the outer code, and options and payload as bytes."""
        if not request.can_reuse_nonce:
            raise ValueError("a second answer with the nonce of its request")
        request.can_reuse_nonce = False
        nonce = (self._device_nonce ^ int.from_bytes(request.partial_iv, "big")).to_bytes(IV_BYTES, "big")
        code = Code.CONTENT if request.fetch else Code.CHANGED
        return code, b"\x90\xff" + self._sender.encrypt(nonce, plain, request.aad)  # an empty OSCORE option


class Contexts:
    """The contexts in use, `count_max` of them; the one used longest ago is forgotten first.

    Forgetting is safe. Sequence numbers of a context that is derived again begin at the time in ms, and above all that were used
    by contexts with the same place in `_last`. They run ahead of the clock by LEAD_MS at most, less than a restart takes: who
    asks more often gets nothing. A context that was forgotten sends nothing of its own any more. An Echo that was made before a
    forgotten context's was is not accepted again, so that the request that established it cannot be replayed.

    Of several processes each has the numbers of its `slot` alone, those that are `slot` modulo `slots`, and uses none from
    `reserved_ms` on; `ahead_ms`: how far its numbers are ahead of the clock, for the slot had somebody before it.
    """

    def __init__(self, count_max: int) -> None:
        self.slot, self.slots = 0, 1
        self.ahead_ms = 0
        self.reserved_ms = float("inf")
        self.dropped: Callable[[Context], None] = lambda context: None
        self._count_max = count_max
        self._known: OrderedDict[bytes, Context] = OrderedDict()
        self._last = [0] * PLACES
        self._echo_floor_s = float("-inf")

    def __len__(self) -> int:
        return len(self._known)

    def get(self, id_context: bytes) -> Context | None:
        found = self._known.get(id_context)
        if found is not None:
            if found.lent:
                return None
            self._known.move_to_end(id_context)
        return found

    def derive(self, header: Header, key: bytes, wall_s: float) -> Context | None:
        """Return a context that is not known yet, or None: not now. `wall_s` must never go back."""
        now_ms = self.now_ms(wall_s)
        place = hash(header.id_context) % PLACES
        sequence = max(now_ms, self._last[place] + 1)
        sequence += (self.slot - sequence) % self.slots
        if sequence > now_ms + LEAD_MS or sequence >= self.reserved_ms:
            return None
        self._last[place] = sequence
        return Context(header, key, sequence, self.slots)

    def lent(self, header: Header, key: bytes) -> Context | None:
        """Return a context whose requests another process takes: it saves a number."""
        found = self._known.get(header.id_context)
        return found if found is not None and found.lent and found.key == key else None

    def now_ms(self, wall_s: float) -> int:
        return int((wall_s - EPOCH_S) * 1000) + self.ahead_ms

    def lend(self, context: Context) -> tuple[int, int]:
        """Give the requests of a context to another process; return its replay window."""
        context.lent = True
        return context.window.first, context.window.seen

    def take_over(self, context: Context, first: int, seen: int) -> Context:
        """Take the requests of a context from another process, with its window; return what stands for it from now on."""
        before = self._known.get(context.id_context)
        if before is not None and before.key == context.key:
            context = before  # it has numbers of its own already, and perhaps observers
            context.lent = False
        else:
            self.establish(context, context.since_s)
        context.window.take_over(first, seen)
        return context

    def disown(self) -> None:
        """Another process may have what this one had, numbers of its own among them."""
        for id_context in list(self._known):
            self.forget(id_context)

    def is_fresh(self, made_s: float | None) -> bool:
        """Say whether an Echo made at that time can only have been sent back for the first time."""
        return made_s is not None and made_s > self._echo_floor_s

    def establish(self, context: Context, made_s: float) -> None:
        context.since_s = made_s
        self.forget(context.id_context)
        if len(self._known) >= self._count_max:
            self.forget(next(iter(self._known)))
        self._known[context.id_context] = context

    def forget(self, id_context: bytes) -> None:
        context = self._known.pop(id_context, None)
        if context is not None:
            context.forgotten = True
            self._echo_floor_s = max(self._echo_floor_s, context.since_s)
            place = hash(id_context) % PLACES
            self._last[place] = max(self._last[place], context.sequence)
            self.dropped(context)
