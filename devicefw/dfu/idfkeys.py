"""Keys that a confirmed manifest adds and revokes, on a board whose bootloader does not: bootloader/FORMAT.md, "Keys". Not kept in RAM."""

import hashlib
import struct

from dfu import flash
from dfu.errors import PackError
from dfu.idf import blob, put
from dfu.pack import unpack
from dfu.records import KEYS_MAGIC

CONTEXT = b"dfud manifest 1\0"


def _id(key):
    return hashlib.sha256(key).digest()[:8]


def rotate(running):
    """Trust what the manifest of the running image says, if the record does not show it yet. Raises OSError.

    Without a key the device is open, and stays so. A manifest cannot revoke the key that it is signed with, a revoked key is never
    added again, a fifth key is ignored.
    """
    envelope = flash.envelope_of(running, running.info()[3])
    record = blob("keys", 256)
    if not envelope or len(record) != 256 or struct.unpack_from("<I", record, 252)[0] != flash.crc32(record[:252]) or not record[8]:
        return
    try:
        signed, own, signature = unpack(envelope)
        m = unpack(signed)
        added, gone = m.get(9, ()), m.get(10, ())
    except (PackError, ValueError, AttributeError):
        return
    keys = [record[16 + 32 * i : 48 + 32 * i] for i in range(record[8])]
    revoked = [record[144 + 8 * i : 152 + 8 * i] for i in range(record[10])]
    development = [key for i, key in enumerate(keys) if record[9] >> i & 1]
    for name in gone:
        if name != own and name not in revoked and len(revoked) < 11:
            revoked.append(name)
    keys = [key for key in keys if _id(key) not in revoked]
    for key in added:
        if key not in keys and len(keys) < 4 and _id(key) not in revoked:
            keys.append(key)
    mask = sum([1 << i for i, key in enumerate(keys) if key in development])
    seq = struct.unpack_from("<I", record, 4)[0]

    def made(seq):
        data = struct.pack("<IIBBB5x", KEYS_MAGIC, seq, len(keys), mask, len(revoked)) + b"".join(keys)
        data = data + bytes(144 - len(data)) + b"".join(revoked)
        data += bytes(252 - len(data))
        return data + struct.pack("<I", flash.crc32(data))

    if made(seq) != record:
        # The image may have come by cable, with a manifest that nobody has judged.
        from dfu.ed25519 import verify

        signer = [record[16 + 32 * i : 48 + 32 * i] for i in range(record[8])]
        signer = [key for key in signer if _id(key) == own]
        if signer and len(signature) == 64 and verify(signer[0], CONTEXT + signed, signature):
            put("keys", made(seq + 1))
