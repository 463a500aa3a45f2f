"""The msgpack subset of docs/protocol.md, "The msgpack subset", and fields of a message."""

from dfu.errors import PackError

UINT32 = 0xFFFFFFFF


def field(message, key, kind, high, low=0, default=None):
    """Return message[key], or `default` where there is none: an int from `low` to `high`, or str or bytes of such a length.

    Raises PackError for any other type, size, or message that is no map: this is how whatever a server sends is judged before use.
    """
    if isinstance(message, dict):
        value = message.get(key, default)
        if isinstance(value, kind) and low <= (value if kind is int else len(value)) <= high:
            return value
    raise PackError("field %d" % key)


def pack(value, out=None):
    """Return `value` in canonical form; maps are written in ascending order of their keys."""
    first = out is None
    if first:
        out = bytearray()
    if value is None:
        out.append(0xC0)
    elif value is False or value is True:
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, int):
        if value < 0:
            raise PackError("negative")
        if value < 0x80:
            out.append(value)
        else:
            _sized(out, value, b"\xcc\xcd\xce\xcf")
    elif isinstance(value, str):
        data = value.encode()
        if len(data) < 32:
            out.append(0xA0 | len(data))
        else:
            _sized(out, len(data), b"\xd9\xda\xdb")
        out.extend(data)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        _sized(out, len(value), b"\xc4\xc5\xc6")
        out.extend(value)
    elif isinstance(value, (list, tuple)):
        _count(out, len(value), 0x90, 0xDC)
        for item in value:
            pack(item, out)
    else:
        _count(out, len(value), 0x80, 0xDE)
        for key in sorted(value):
            pack(key, out)
            pack(value[key], out)
    return bytes(out) if first else out


def _sized(out, n, marks):
    for i in range(len(marks)):
        size = 1 << i
        if n < 1 << (8 * size):
            out.append(marks[i])
            out.extend(n.to_bytes(size, "big"))
            return
    raise PackError("too large")


def _count(out, n, small, mark):
    if n < 16:
        out.append(small | n)
    else:
        out.append(mark)
        out.extend(n.to_bytes(2, "big"))


def unpack(buf):
    """Return the one value that `buf` holds; raises PackError for anything else."""
    try:
        value, position = _read(buf, 0, 0)
    except (IndexError, ValueError, UnicodeError):
        raise PackError("cut short or not text")
    if position != len(buf):
        raise PackError("bytes behind the message")
    return value


def _number(buf, p, size):
    if p + size > len(buf):
        raise PackError("cut short")
    n = 0
    for i in range(size):
        n = n << 8 | buf[p + i]
    return n


def _read(buf, p, depth):
    if depth > 5:
        raise PackError("too deep")
    x = buf[p]
    p += 1
    if x < 0x80:
        return x, p
    if x == 0xC0:
        return None, p
    if x == 0xC2 or x == 0xC3:
        return x == 0xC3, p
    if 0xCC <= x <= 0xCF:
        size = 1 << (x - 0xCC)
        return _number(buf, p, size), p + size
    if 0xA0 <= x < 0xC0:
        n, text = x & 31, True
    elif 0xC4 <= x <= 0xC6 or 0xD9 <= x <= 0xDB:
        text = x >= 0xD9
        size = 1 << (x - (0xD9 if text else 0xC4))
        n = _number(buf, p, size)
        p += size
    elif 0x80 <= x < 0x90 or x == 0xDE or x == 0xDF:
        n, p = (x & 15, p) if x < 0x90 else (_number(buf, p, 2 if x == 0xDE else 4), p + (2 if x == 0xDE else 4))
        if n > 1024:
            raise PackError("too many")
        found = {}
        for _ in range(n):
            key, p = _read(buf, p, depth + 1)
            if not isinstance(key, (int, str)) or key is True or key is False or key in found:
                raise PackError("map key")
            found[key], p = _read(buf, p, depth + 1)
        return found, p
    elif 0x90 <= x < 0xA0 or x == 0xDC or x == 0xDD:
        n, p = (x & 15, p) if x < 0xA0 else (_number(buf, p, 2 if x == 0xDC else 4), p + (2 if x == 0xDC else 4))
        if n > 1024:
            raise PackError("too many")
        items = []
        for _ in range(n):
            item, p = _read(buf, p, depth + 1)
            items.append(item)
        return items, p
    else:
        raise PackError("type %02x" % x)
    if p + n > len(buf):
        raise PackError("cut short")
    data = bytes(buf[p : p + n])
    return (data.decode() if text else data), p + n
