"""The address table of a mapped delta (docs/delta-format.md): read and checked once, when its first chunk has come. Not kept in RAM.

Every way of being wrong raises PackError.
"""

from array import array

from dfu.errors import PackError

PAGE = 4096
VERSION = 1
TABLE_MAX, ENTRIES_MAX, SEGMENTS_MAX = 4096, 2048, 16
GROUP = 8
TURN = 128  # entries, then others have their turn
HEAD = 256 + 4 * 2 * SEGMENTS_MAX  # of `tab`: which addresses are known; a segment is shorter than 16 MB
ALL = 0xFFFFFFFF


def segments(part, size):
    """Return [(offset, length, address)] of the ESP image of `size` bytes in `part`; [] for anything else."""
    found = []
    head = bytearray(24)
    if size < 24:
        return found
    part.readblocks(0, head, 0)
    if head[0] != 0xE9 or head[1] > SEGMENTS_MAX:
        return found
    at = 24
    word = bytearray(8)
    for _ in range(head[1]):
        if at + 8 > size:
            break
        part.readblocks(at // PAGE, word, at % PAGE)
        address, length = int.from_bytes(word[:4], "little"), int.from_bytes(word[4:], "little")
        at += 8
        if length > size - at:
            break
        found.append((at, length, address))
        at += length
    return found


def table_of(buffer, start, end, decoder):
    """Return the address table with which the payload of a mapped delta's first chunk begins, and where the frame behind it does."""
    mark = buffer[start]
    start += 1
    if mark > 127 and start < end:
        mark = mark & 127 | buffer[start] << 7
        start += 1
    stop = start + (mark >> 1)
    if stop > end:
        raise PackError("table cut short")
    data = bytearray(memoryview(buffer)[start:stop])
    if mark & 1:
        data = bytearray()
        for n in decoder.decode(buffer, start, stop, 0, TABLE_MAX, None, exact=False):
            data.extend(memoryview(decoder.page)[:n])
    return data, stop


class _Table:
    """Reads the table's numbers from `tab`, in which it begins behind HEAD bytes."""

    def __init__(self, tab):
        self.tab, self.at = tab, HEAD

    def take(self, high=ALL):
        value = 0
        for shift in range(0, 35, 7):
            if self.at == len(self.tab):
                raise PackError("table cut short")
            x = self.tab[self.at]
            self.at += 1
            value |= (x & 127) << shift
            if x < 128:
                if value > high:
                    break
                return value
        raise PackError("table number")

    def signed(self):
        value = self.take()
        return -(value >> 1) - 1 if value & 1 else value >> 1


def load(part, size, data, new_size):
    """Yield None now and then, so that others have their turn, and at last the segments of the old image of `size` bytes in `part` and of the new one, the table `data` with its head, its index, the
    inner loops' state, and the table's flags."""
    if not data or data[0] != VERSION or len(data) > TABLE_MAX:
        raise PackError("table version")
    old = segments(part, size)
    tab = bytearray(HEAD + len(data))
    tab[HEAD:] = data
    blocks = 0
    for _, length, address in old:
        if length and address:
            for k in range(address >> 19, (address + length - 1 >> 19) + 1):
                high = k >> 5 & 255
                if not tab[high]:
                    blocks += 1
                    tab[high] = blocks
                tab[252 + 4 * tab[high] + (k >> 3 & 3)] |= 1 << (k & 7)
    st = array("I", bytes(4 * 192))
    st[0], st[1] = ALL, 0xF003FCE0
    table = _Table(tab)
    table.at += 1
    flags = table.take(0x1FFFF)
    like = [s for i, s in enumerate(old) if flags >> 1 + i & 1]
    new = []
    end = 0
    for i in range(table.take(SEGMENTS_MAX)):
        was = like[i] if i < len(like) else (0, 0, 0)
        offset = was[0] + table.signed() & ALL
        length = was[1] + table.signed() & ALL
        address = was[2] + table.signed() & ALL
        if offset < end or length > new_size or offset > new_size - length or (offset | address) & 1:
            raise PackError("table segment")
        end = offset + length
        new.append((offset, length, address))
    count = st[10] = table.take(ENTRIES_MAX)
    ix = array("I", bytes(4 * max(4, 4 * ((count + GROUP - 1) // GROUP))))
    start = 0
    for i in range(count):
        gap = table.take()
        start += gap
        if start > ALL or (i and not gap):
            raise PackError("table order")
        if i % GROUP == 0:
            ix[i // GROUP * 4], ix[i // GROUP * 4 + 1] = start, table.at
        if i % TURN == 0:
            yield None
    shift = 0
    for i in range(count):
        shift += table.signed()
        if i % GROUP == 0:
            ix[i // GROUP * 4 + 2], ix[i // GROUP * 4 + 3] = shift & ALL, table.at
        if i % TURN == 0:
            yield None
    if table.at != len(tab):
        raise PackError("table end")
    yield old, new, tab, ix, st, flags
