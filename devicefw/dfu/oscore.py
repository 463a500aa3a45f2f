"""OSCORE (RFC 8613) for a client: one security context, AES-CCM-16-64-128, as docs/coap.md has it. No socket, no clock.

Messages are encrypted and decrypted where they lie. AES-CCM (RFC 3610; M = 8, L = 2) is made of two of cryptolib's modes: CBC
yields the MAC and ECB of counters the key stream, so that every byte is worked on in C.
"""

from cryptolib import aes
from micropython import const

_TAG = const(8)
_STEP = const(128)  # bytes of key stream at once
_ECB, _CBC = const(1), const(2)
_KID, _HINT, _RESERVED = const(0x08), const(0x10), const(0xE0)


class Context:
    """What both sides derive from the secret: `keys` is what dfu.oscorekeys.derive() returned for this id_context (bytes, or None).
    `sequence` begins at 0 with new keys and lives in RAM only: take another id_context after every start."""

    def __init__(self, keys, id_context, sequence=0, sender=b"\x01", recipient=b"\x00"):
        self.keys, self.hint, self.sequence = keys, id_context, sequence
        self.sender, self.recipient = sender, recipient
        # Kept, and not made for each message: pieces of this size are hard to find once an application runs.
        self.ciphers = [(aes(key, _ECB), aes(key, _CBC, bytes(16))) for key in keys[:2]]
        self.chained = [bytes(16), bytes(16)]
        self.work = bytearray(2 * _STEP)

    def take(self):
        """Return a Partial IV that was never used, for one request."""
        number = self.sequence
        self.sequence += 1
        n = 1
        while number >> (8 * n):
            n += 1
        return number.to_bytes(n, "big")

    def option(self, piv):
        """Return the OSCORE option of a request."""
        hint = self.hint
        if hint is None:
            return bytes([_KID | len(piv)]) + piv + self.sender
        return bytes([_KID | _HINT | len(piv)]) + piv + bytes([len(hint)]) + hint + self.sender

    def _ccm(self, which, name, piv, request_piv, buf, start, end, opening):
        """Put the key stream over the bytes from `start` to `end`; return the tag. opening: they are encrypted."""
        nonce = bytes([len(name)]) + bytes(7 - len(name)) + name + bytes(5 - len(piv)) + piv
        nonce = bytes([a ^ b for a, b in zip(self.keys[2], nonce)])
        # The AAD (section 5.4): Encrypt0, and in it version, algorithm, kid and Partial IV of the request.
        kid = self.sender
        aad = b"\x85\x01\x81\x0a" + bytes([0x40 | len(kid)]) + kid + bytes([0x40 | len(request_piv)]) + request_piv + b"\x40"
        aad = b"\x83\x68Encrypt0\x40" + bytes([0x40 | len(aad)]) + aad
        ecb, cbc = self.ciphers[which]
        head = b"\x59" + nonce + (end - start).to_bytes(2, "big")
        # The cipher goes on from its last output, which the first block takes out again.
        head = bytes([a ^ b for a, b in zip(head, self.chained[which])]) + bytes([0, len(aad)]) + aad
        mac = cbc.encrypt(head + bytes(-len(head) % 16))[-16:]
        data, counters = memoryview(buf), self.work
        stream, blocks = memoryview(counters)[_STEP:], memoryview(counters)[:_STEP]
        for i in range(0, _STEP, 16):
            counters[i] = 1
            counters[i + 1 : i + 14] = nonce
            counters[i + 14] = counters[i + 15] = 0
        first = ecb.encrypt(blocks[:16])
        number = 1
        for at in range(start, end, _STEP):
            n = min(_STEP, end - at)
            whole = (n + 15) & ~15
            piece = data[at : at + n]
            for turn in (opening, not opening):
                if turn:
                    for i in range(14, whole, 16):
                        counters[i], counters[i + 1] = number >> 8, number & 0xFF
                        number += 1
                    ecb.encrypt(blocks[:whole], stream[:whole])
                    piece[:] = (int.from_bytes(piece, "big") ^ int.from_bytes(stream[:n], "big")).to_bytes(n, "big")
                else:
                    # The MAC is over what is not encrypted, filled up with zeros.
                    stream[:n] = piece
                    for i in range(n, whole):
                        stream[i] = 0
                    cbc.encrypt(stream[:whole], stream[:whole])
                    mac = bytes(stream[whole - 16 : whole])
        self.chained[which] = mac
        return bytes([mac[i] ^ first[i] for i in range(_TAG)])

    def seal(self, piv, buf, start):
        """Protect a request: the inner message (code, options, payload) is in the bytearray from `start` on."""
        buf.extend(self._ccm(0, self.sender, piv, piv, buf, start, len(buf), False))

    def open(self, piv, option, buf, start, end):
        """Open the answer to the request of that Partial IV. Return where the inner message ends and the server's own sequence
        number (None if the answer has none), or None if the server has not protected this; the bytes are lost then."""
        flags = option[0] if option else 0
        n = flags & 7
        own, rest = option[1 : 1 + n], option[1 + n :]
        if flags & _HINT and rest:
            hint, rest = rest[1 : 1 + rest[0]], rest[1 + rest[0] :]
            if hint != self.hint:
                return None
        if flags & _RESERVED or n > 5 or len(own) < n or rest != (self.recipient if flags & _KID else b""):
            return None
        end -= _TAG
        if end <= start:
            return None
        sent = bytes(buf[end : end + _TAG])
        tag = self._ccm(1, self.recipient if n else self.sender, own if n else piv, piv, buf, start, end, True)
        wrong = 0
        for a, b in zip(tag, sent):
            wrong |= a ^ b
        return None if wrong else (end, int.from_bytes(own, "big") if n else None)
