"""The head of a chunk: docs/packages.md."""

from dfu.errors import PackError
from dfu.pack import _number, _read

PAGES_MAX = 1024  # of a chunk


def chunk_head(buf, length):
    """Return (number, page, pages, crc, payload's first byte, its end) of the chunk in buf[:length], copying nothing."""
    try:
        if length < 1 or buf[0] != 0x95:
            raise PackError("no chunk")
        p = 1
        found = []
        for _ in range(4):
            value, p = _read(buf, p, 0)
            if not isinstance(value, int) or value > 0xFFFFFFFF:
                raise PackError("chunk head")
            found.append(value)
        if found[2] > PAGES_MAX:
            raise PackError("chunk pages")
        x = buf[p]
        size = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(x)
        if size is None:
            raise PackError("chunk payload")
        n = _number(buf, p + 1, size)
        p += 1 + size
    except (IndexError, UnicodeError):
        raise PackError("cut short")
    if p + n != length or not n:
        raise PackError("chunk length")
    return found[0], found[1], found[2], found[3], p, p + n
