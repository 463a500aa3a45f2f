"""OSCORE (RFC 8613) for the server: contexts out of pre-shared keys, and who may be forgotten when. No I/O.

The cryptography is aiocoap's; this module decides which context a request belongs to, whether it is fresh (Echo, RFC 9175
and RFC 8613 appendix B.1.2), and that no nonce is used twice after a context was forgotten and derived again.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec
from aiocoap import Message as AioMessage  # type: ignore[import-untyped]  # has no types
from aiocoap import oscore as aio
from aiocoap.message import Direction  # type: ignore[import-untyped]
from aiocoap.numbers.codes import Code as AioCode  # type: ignore[import-untyped]

from dfud_coap.message import Code, Message, MessageError, Option, decode_tail_untrusted
from dfud_coap.translate import Answer

KEY_BYTES = 16
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


def read_option_untrusted(value: bytes) -> Header:
    """Read the OSCORE option of a request (RFC 8613, 6.1); raises OscoreError."""
    bad = OscoreError(Code.BAD_OPTION, "OSCORE option, expected Partial IV, kid context and kid")
    if not value or value[0] & 0xE0 or not value[0] & 0x08 or not value[0] & 0x10:
        raise bad
    size = value[0] & 7
    if not 1 <= size <= 5 or len(value) < 1 + size + 1:
        raise bad
    partial_iv = value[1 : 1 + size]
    length = value[1 + size]
    id_context = value[2 + size : 2 + size + length]
    if len(id_context) != length or value[2 + size + length :] != DEVICE_ID or length <= NONCE_BYTES:
        raise bad
    try:
        return Header(partial_iv, id_context, id_context[NONCE_BYTES:].decode())
    except UnicodeDecodeError:
        raise bad from None


class _AioContext(aio.CanProtect, aio.CanUnprotect, aio.SecurityContextUtils):  # type: ignore[misc]  # has no types
    """aiocoap's context, filled in."""

    echo_recovery = None

    def __init__(self, key: bytes, id_context: bytes, sequence: int) -> None:
        self.alg_aead = aio.AES_CCM_16_64_128()
        self.hashfun = aio.hashfunctions["sha256"]
        self.sender_id, self.recipient_id, self.id_context = SERVER_ID, DEVICE_ID, id_context
        self.sender_sequence_number = sequence
        self.derive_keys(b"", key)
        self.recipient_replay_window = aio.ReplayWindow(WINDOW, lambda: None)
        self.recipient_replay_window.initialize_empty()

    def post_seqnoincrease(self) -> None:
        """Nothing is stored: see Contexts."""

    def _post_decrypt_checks(self, aad: Any, plaintext: bytes, message: Any, request: Any) -> None:
        # Taken as it is, for our own decoder.
        self.plaintext = plaintext


class Context:
    """One boot of one device. `since_s`: when the Echo that proved it was made. `forgotten`: another one may take its place,
    so it must not use numbers of its own any more."""

    __slots__ = ("_aio", "forgotten", "id_context", "identity", "key", "since_s")

    def __init__(self, header: Header, key: bytes, sequence: int) -> None:
        self.identity = header.identity
        self.id_context = header.id_context
        self.key = key
        self.since_s = 0.0
        self.forgotten = False
        self._aio = _AioContext(key, header.id_context, sequence)

    @property
    def sequence(self) -> int:
        return int(self._aio.sender_sequence_number)

    def unprotect_untrusted(self, code: int, option: bytes, payload: bytes, observe: bool) -> tuple[Message, Any]:
        """Return the inner request and what answers to it need. Raises OscoreError; the context is then unchanged."""
        outer = AioMessage(code=AioCode(code), payload=payload)
        outer.direction = Direction.INCOMING
        outer.opt.oscore = option
        try:
            _, request = self._aio.unprotect(outer)
            plain = self._aio.plaintext
        except aio.ReplayError:
            raise OscoreError(Code.UNAUTHORIZED, "Replay detected") from None
        except Exception:
            # aiocoap lets several kinds out for malformed input; all of them mean the same to the peer.
            raise OscoreError(Code.UNAUTHORIZED, "Security context not found") from None
        try:
            options, body = decode_tail_untrusted(plain, 1)
        except MessageError as error:
            raise OscoreError(Code.BAD_REQUEST, str(error)) from None
        if not observe:
            options = [o for o in options if o[0] != Option.OBSERVE]
        return Message(0, plain[0], 0, b"", options, body), request

    def fresh_from(self, header: Header) -> None:
        """The request just unprotected is known to be fresh: nothing before it may come any more."""
        self._aio.recipient_replay_window.initialize_from_freshlyseen(int.from_bytes(header.partial_iv, "big"))

    def protect(self, answer: Answer, request: Any, *, own_iv: bool = False, observe: bytes | None = None) -> Answer:
        """Return the outer answer. own_iv: this is not the first answer to the request (or the request may be a replay), so
        its nonce must not be used. observe: value of the outer option."""
        if own_iv and not self.forgotten:
            request.can_reuse_nonce = False
        inner = AioMessage(code=AioCode(answer.code))
        inner.direction = Direction.OUTGOING
        inner.payload = inner.opt.decode(answer.tail())
        outer, _ = self._aio.protect(inner, request)
        options = [(int(Option.OSCORE), bytes(outer.opt.oscore))]
        if observe is not None:
            options.append((Option.OBSERVE, observe))
        return Answer(int(outer.code), options, outer.payload)


class Contexts:
    """The contexts in use, `count_max` of them; the one used longest ago is forgotten first.

    Forgetting is safe. Sequence numbers of a context that is derived again begin at the time in ms, and above all that were used
    by contexts with the same place in `_last`. They run ahead of the clock by LEAD_MS at most, less than a restart takes: who
    asks more often gets nothing. A context that was forgotten sends nothing of its own any more. An Echo that was made before a
    forgotten context's was is not accepted again, so that the request that established it cannot be replayed.
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._known: OrderedDict[bytes, Context] = OrderedDict()
        self._last = [0] * PLACES
        self._echo_floor_s = float("-inf")

    def __len__(self) -> int:
        return len(self._known)

    def get(self, id_context: bytes) -> Context | None:
        found = self._known.get(id_context)
        if found is not None:
            self._known.move_to_end(id_context)
        return found

    def derive(self, header: Header, key: bytes, wall_s: float) -> Context | None:
        """Return a context that is not known yet, or None: not now. `wall_s` must never go back."""
        now_ms = int((wall_s - EPOCH_S) * 1000)
        place = hash(header.id_context) % PLACES
        sequence = max(now_ms, self._last[place] + 1)
        if sequence > now_ms + LEAD_MS:
            return None
        self._last[place] = sequence
        return Context(header, key, sequence)

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
