"""CoAP messages as bytes (RFC 7252, section 3): no socket, no clock. What comes from outside is read by parse()."""

CON, NON, ACK, RST = range(4)
EMPTY, GET, POST, FETCH = 0, 1, 2, 5
CHANGED, CONTENT, CONTINUE = 0x44, 0x45, 0x5F
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, INCOMPLETE, TOO_LARGE = 0x81, 0x83, 0x84, 0x88, 0x8D
ETAG, OBSERVE, OSCORE, PATH, BLOCK2, BLOCK1, ECHO, TAG, AUTH, COMMAND = 4, 6, 9, 11, 23, 27, 252, 292, 4209, 4210
# The critical options that an answer may carry; libcoap sends back the one that it did not know.
UNDERSTOOD = (OSCORE, BLOCK2, BLOCK1, AUTH)
MARK = 0xFF
TOKEN_MAX_BYTES = 8


class FormatError(Exception):
    """The bytes are no message; args[1] is the message ID if it should be rejected with a reset, else None."""

    def __init__(self, text, mid=None):
        super().__init__(text, mid)


class Message:
    """kind, code, mid, token, options: [(number, value)]; the payload is buf[start:end]."""

    def first(self, number):
        """Return the first option of that number, or None."""
        for n, value in self.options:
            if n == number:
                return value
        return None

    def block(self, number):
        """Return (number, more, exponent of the size) of a block option, or None. Raises FormatError."""
        value = self.first(number)
        if value is None:
            return None
        n = int.from_bytes(value, "big")
        if len(value) > 3 or n & 7 == 7:
            raise FormatError("block option")
        return n >> 4, n >> 3 & 1, n & 7


def parse(buf, length):
    """Return the Message in the first `length` bytes. Raises FormatError."""
    if length < 4 or buf[0] >> 6 != 1:
        raise FormatError("no CoAP")
    m = Message()
    m.kind, m.code, m.mid = buf[0] >> 4 & 3, buf[1], buf[2] << 8 | buf[3]
    at = 4 + (buf[0] & 15)
    reject = m.mid if m.kind == CON else None
    if at - 4 > TOKEN_MAX_BYTES or at > length or (m.code == EMPTY and length != 4):
        raise FormatError("header", reject)
    m.token = bytes(buf[4:at])
    try:
        inner(m, buf, at, length)
    except FormatError as error:
        raise FormatError(error.args[0], reject)
    return m


def inner(m, buf, at, end):
    """Read options and payload, which begin at `at`, into m. Raises FormatError."""
    m.options, number = [], 0
    m.start = m.end = end
    while at < end:
        head = buf[at]
        at += 1
        if head == MARK:
            if at == end:
                raise FormatError("payload")
            m.start = at
            return
        delta, at = _extended(buf, at, end, head >> 4)
        size, at = _extended(buf, at, end, head & 15)
        number += delta
        if at + size > end or number > 0xFFFF:
            raise FormatError("option")
        m.options.append((number, bytes(buf[at : at + size])))
        if number & 1 and number not in UNDERSTOOD:
            raise FormatError("critical option %d" % number)
        at += size


def _extended(buf, at, end, nibble):
    if nibble < 13:
        return nibble, at
    size = nibble - 12
    if size == 3 or at + size > end:
        raise FormatError("option")
    return int.from_bytes(bytes(buf[at : at + size]), "big") + (13 if size == 1 else 269), at + size


def put_options(out, options):
    """Append options, given in ascending order of their numbers, to a bytearray."""
    last = 0
    for number, value in options:
        delta, size = number - last, len(value)
        last = number
        out.append(_nibble(delta) << 4 | _nibble(size))
        for n in (delta, size):
            if n >= 269:
                out.extend((n - 269).to_bytes(2, "big"))
            elif n >= 13:
                out.append(n - 13)
        out.extend(value)


def _nibble(n):
    return n if n < 13 else 13 if n < 269 else 14


def head(kind, code, mid, token=b""):
    """Return the beginning of a message, in a bytearray that grows."""
    out = bytearray([0x40 | kind << 4 | len(token), code, mid >> 8, mid & 0xFF])
    out.extend(token)
    return out


def uint(n):
    """Return an option's unsigned integer: as short as it can be."""
    size = 0
    while n >> (8 * size):
        size += 1
    return n.to_bytes(size, "big") if size else b""


def block(number, more, exponent):
    return uint(number << 4 | more << 3 | exponent)
