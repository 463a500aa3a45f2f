"""OSCORE (RFC 8613) for a client: one security context, AES-CCM-16-64-128 and HKDF with SHA-256, as docs/coap.md has it.

No socket, no clock: bytes in, bytes out. The messages are encrypted and decrypted where they lie.
"""

import hashlib

from cryptolib import aes

TAG_BYTES = 8
ALGORITHM = 10  # AES-CCM-16-64-128
SEQUENCE_MAX = (1 << 40) - 1
ECB, CBC = 1, 2
STEP = 256  # bytes of key stream at once
PIV, CONTEXT, KID, RESERVED = 0x07, 0x10, 0x08, 0xE0


class OscoreError(Exception):
    """The message is not one that the other side protected for us."""


def hmac(key, data):
    """HMAC-SHA256; keys of up to 64 bytes."""
    key = key + bytes(64 - len(key))
    inner = hashlib.sha256(bytes([b ^ 0x36 for b in key]))
    inner.update(data)
    outer = hashlib.sha256(bytes([b ^ 0x5C for b in key]))
    outer.update(inner.digest())
    return outer.digest()


def bstr(data):
    """`data` as a CBOR byte string."""
    n = len(data)
    return (bytes([0x40 | n]) if n < 24 else b"\x58" + bytes([n])) + data if n < 256 else b"\x59" + n.to_bytes(2, "big") + data


class Ccm:
    """AES-CCM with a 13-byte nonce and an 8-byte tag (RFC 3610: M = 8, L = 2) on two of cryptolib's modes: CBC yields the
    MAC and ECB of counters the key stream, so every byte is worked on in C."""

    # One for all: nothing of them is needed between two calls.
    counters, stream = bytearray(STEP), bytearray(STEP)

    def __init__(self, key):
        self.key = key
        self.ecb = aes(key, ECB)

    def _mac(self, nonce, aad, buf, start, end):
        cbc = aes(self.key, CBC, bytes(16))
        head = b"\x59" + nonce + (end - start).to_bytes(2, "big") + len(aad).to_bytes(2, "big") + aad
        mac = cbc.encrypt(head + bytes(-len(head) % 16))[-16:]
        view, out = memoryview(buf), memoryview(self.stream)
        for at in range(start, end, STEP):
            n = min(STEP, end - at)
            whole = n & ~15
            if whole:
                cbc.encrypt(view[at : at + whole], out[:whole])
                mac = bytes(out[whole - 16 : whole])
            if n > whole:
                mac = cbc.encrypt(bytes(view[at + whole : at + n]) + bytes(16 - (n - whole)))
        return mac[:TAG_BYTES]

    def _xor(self, nonce, buf, start, end):
        """Put the key stream over the bytes; return the 8 bytes of it that are for the tag."""
        counters, stream, ecb = self.counters, memoryview(self.stream), self.ecb
        for i in range(0, STEP, 16):
            counters[i] = 1
            counters[i + 1 : i + 14] = nonce
        blocks = memoryview(counters)
        counters[14] = counters[15] = 0
        first = bytes(ecb.encrypt(blocks[:16]))[:TAG_BYTES]
        number = 1
        view = memoryview(buf)
        for at in range(start, end, STEP):
            n = min(STEP, end - at)
            whole = (n + 15) & ~15
            for i in range(14, whole, 16):
                counters[i], counters[i + 1] = number >> 8, number & 0xFF
                number += 1
            ecb.encrypt(blocks[:whole], stream[:whole])
            piece = view[at : at + n]
            piece[:] = (int.from_bytes(piece, "big") ^ int.from_bytes(stream[:n], "big")).to_bytes(n, "big")
        return first

    def seal(self, nonce, aad, buf, start):
        """Encrypt the bytearray's bytes from `start` on and append the tag."""
        mac = self._mac(nonce, aad, buf, start, len(buf))
        first = self._xor(nonce, buf, start, len(buf))
        buf.extend(bytes([a ^ b for a, b in zip(mac, first)]))

    def open(self, nonce, aad, buf, start, end):
        """Decrypt the bytes from `start` to `end`, which includes the tag; return where the plain text ends. Raises OscoreError,
        the bytes are lost then."""
        if end - start < TAG_BYTES:
            raise OscoreError("too short")
        end -= TAG_BYTES
        tag = bytes(buf[end : end + TAG_BYTES])
        first = self._xor(nonce, buf, start, end)
        mac = self._mac(nonce, aad, buf, start, end)
        wrong = 0
        for i in range(TAG_BYTES):
            wrong |= mac[i] ^ first[i] ^ tag[i]
        if wrong:
            raise OscoreError("tag")
        return end


class Context:
    """What both sides derive from the secret. The sequence number begins at 0 and lives in RAM only: take another id_context
    with every new object."""

    def __init__(self, secret, id_context, sender=b"\x01", recipient=b"\x00", salt=b""):
        self.sender, self.recipient, self.id_context = sender, recipient, id_context
        self.sequence = 0
        prk = hmac(salt or bytes(32), secret)

        def derived(name, kind, n):
            info = b"\x85" + bstr(name) + (b"\xf6" if id_context is None else bstr(id_context))
            info += bytes([ALGORITHM, 0x60 | len(kind)]) + kind + bytes([n])
            return hmac(prk, info + b"\x01")[:n]

        self.sealing = Ccm(derived(sender, b"Key", 16))
        self.opening = Ccm(derived(recipient, b"Key", 16))
        self.iv = derived(b"", b"IV", 13)

    def _nonce(self, name, piv):
        parts = bytes([len(name)]) + bytes(7 - len(name)) + name + bytes(5 - len(piv)) + piv
        return bytes([a ^ b for a, b in zip(self.iv, parts)])

    def _aad(self, piv):
        external = b"\x85\x01\x81" + bytes([ALGORITHM]) + bstr(self.sender) + bstr(piv) + b"\x40"
        return b"\x83\x68Encrypt0\x40" + bstr(external)

    def take(self):
        """Return a Partial IV that was never used, for one request."""
        sequence = self.sequence
        if sequence > SEQUENCE_MAX:
            raise OscoreError("sequence")
        self.sequence += 1
        n = 1
        while sequence >> (8 * n):
            n += 1
        return sequence.to_bytes(n, "big")

    def option(self, piv):
        """Return the OSCORE option of a request."""
        flags, hint = KID | len(piv), b""
        if self.id_context is not None:
            flags |= CONTEXT
            hint = bytes([len(self.id_context)]) + self.id_context
        return bytes([flags]) + piv + hint + self.sender

    def seal(self, piv, buf, start):
        """Protect a request: the inner message (code, options, payload) is in the bytearray from `start` on."""
        self.sealing.seal(self._nonce(self.sender, piv), self._aad(piv), buf, start)

    def open(self, piv, option, buf, start, end):
        """Open the answer to the request of that Partial IV. Return where the inner message ends and the server's own sequence
        number, None if the answer has none. Raises OscoreError."""
        flags = option[0] if option else 0
        n = flags & PIV
        at = 1 + n
        if flags & RESERVED or n > 5 or (option and len(option) < at):
            raise OscoreError("option")
        if flags & CONTEXT:
            if len(option) <= at or len(option) < at + 1 + option[at]:
                raise OscoreError("option")
            hint = option[at + 1 : at + 1 + option[at]]
            at += 1 + option[at]
            if hint != self.id_context:
                raise OscoreError("context")
        if option[at:] != (self.recipient if flags & KID else b""):
            raise OscoreError("kid")
        own = option[1 : 1 + n]
        nonce = self._nonce(self.recipient, own) if n else self._nonce(self.sender, piv)
        end = self.opening.open(nonce, self._aad(piv), buf, start, end)
        if end == start:
            raise OscoreError("empty")
        return end, int.from_bytes(own, "big") if n else None
