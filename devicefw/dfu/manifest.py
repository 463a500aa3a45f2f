"""A manifest: the signed description of an image, docs/protocol.md. Reading it believes nothing; dfu.judge says whether it counts.

Not kept in RAM: what holds a manifest is the class, which stays with its objects and has no code.
"""

from dfu.errors import SIGNATURE, PackError, UpdateError
from dfu.pack import UINT32, field, unpack


class Manifest:
    """`signed`, `key` and `signature` of the envelope, and what `signed` says: app, version, hardware, sequence, size, sha256, flags,
    floor, and `range`: the lowest and highest sequence of the other kind that it runs with."""


def read(envelope):
    """Return the manifest in an envelope; raises UpdateError if there is none."""
    found = Manifest()
    try:
        parts = unpack(envelope)
        if not isinstance(parts, list) or [type(part) for part in parts] != [bytes] * 3:
            raise PackError("envelope")
        found.signed, found.key, found.signature = parts
        m = unpack(found.signed)
        field(m, 0, int, 1, 1)
        found.app, found.version, found.hardware = field(m, 1, str, 63, 1), field(m, 2, str, 64, 1), field(m, 3, str, 32, 1)
        found.sequence, found.size = field(m, 4, int, UINT32), field(m, 5, int, UINT32, 1)
        found.sha256, found.flags, found.floor = field(m, 6, bytes, 32, 32), field(m, 7, int, UINT32), field(m, 8, int, UINT32, 0, 0)
        found.range = between = m.get(11, (0, UINT32))
        if len(between) != 2 or [type(n) for n in between] != [int] * 2:
            raise PackError("field %d" % 11)
    except (PackError, TypeError) as error:
        raise UpdateError(SIGNATURE, "the manifest cannot be read: %s" % error)
    return found


def stored(envelope):
    """Return the manifest of an envelope that stands in flash, or None: what cannot be read there must not end a start."""
    try:
        return read(envelope) if envelope else None
    except UpdateError:
        return None
