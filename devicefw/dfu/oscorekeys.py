"""The keys of an OSCORE context (RFC 8613, section 3.2): HKDF with SHA-256. Needed once a boot, so a module of its own."""

import hashlib


def hmac(key, data):
    """HMAC-SHA256; keys of up to 64 bytes."""
    key = key + bytes(64 - len(key))
    inner = hashlib.sha256(bytes([b ^ 0x36 for b in key]))
    inner.update(data)
    outer = hashlib.sha256(bytes([b ^ 0x5C for b in key]))
    outer.update(inner.digest())
    return outer.digest()


def derive(secret, salt, id_context, sender, recipient):
    """Return the sender's and the recipient's key and the common IV. id_context: None, or up to 255 bytes."""
    prk = hmac(salt or bytes(32), secret)
    found = []
    for name, kind, size in ((sender, b"\x63Key", 16), (recipient, b"\x63Key", 16), (b"", b"\x62IV", 13)):
        # CBOR: [name, id_context or null, 10 (AES-CCM-16-64-128), kind, size]
        info = bytes([0x85, 0x40 | len(name)]) + name
        if id_context is None:
            info += b"\xf6"
        else:
            n = len(id_context)
            info += (bytes([0x40 | n]) if n < 24 else bytes([0x58, n])) + id_context
        found.append(hmac(prk, info + b"\x0a" + kind + bytes([size, 1]))[:size])
    return found
