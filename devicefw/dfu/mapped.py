"""The mapped delta, package kind 3 (docs/delta-format.md): the old image through the table, and the new one back from absolute form.

Holds the table as it came (at most 4096 bytes) and, for every 32nd entry of it, where to go on reading; one page of 2048 bytes of the
view, and what is needed around it: 3 KB beside the table. Every way of being wrong raises PackError.
"""

from array import array

from dfu.pack import PackError

try:
    from dfu.mviper import form, view
except (ImportError, SyntaxError, ValueError):
    from dfu.plain import load

    form, view = load(__file__, "mapped", "mviper", ("form", "view"))

PAGE = 4096
VIEW = 2048
BEFORE, BEHIND = 260, 104  # what a page of the view depends on around it, rounded up
VERSION = 1
TABLE_MAX, ENTRIES_MAX, SEGMENTS_MAX = 4096, 2048, 16
GROUP = 32
HEAD = 256 + 4 * 2 * SEGMENTS_MAX  # of `tab`: which addresses are known; a segment is shorter than 16 MB
HISTORY, PIECE = 1 << 18, 256
WINDOW = 256
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
        for _ in decoder.decode(buffer, start, stop, 0, TABLE_MAX, None, lambda n: data.extend(memoryview(decoder.page)[:n]), exact=False):
            pass
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


class Mapped:
    """`part`: where the old image stands, `size` bytes of it; `data`: the decoded table; `new_size`: the new image's length.

    read() is what the decoder of frames reads through; begin() says which chunk it decodes, back() makes a page of it what is written.
    """

    def __init__(self, part, size, data, new_size, image):
        self.part, self.size, self.image = part, size, image
        if not data or data[0] != VERSION or len(data) > TABLE_MAX:
            raise PackError("table version")
        self._old = segments(part, size)
        tab = self._tab = bytearray(HEAD + len(data))
        tab[HEAD:] = data
        blocks = 0
        for _, length, address in self._old:
            if length and address:
                for k in range(address >> 19, (address + length - 1 >> 19) + 1):
                    high = k >> 5 & 255
                    if not tab[high]:
                        blocks += 1
                        tab[high] = blocks
                    tab[252 + 4 * tab[high] + (k >> 3 & 3)] |= 1 << (k & 7)
        st = self._st = array("I", bytes(4 * 96))
        st[0], st[1] = ALL, 0xF003FCE0
        self._load(new_size)
        self._raw = bytearray(VIEW + BEFORE + BEHIND)
        self._window = bytearray(WINDOW)
        self._at, self._end = -1, 0
        self._carries = bytearray(new_size // PAGE + 2)
        self._first = self._before = 0

    def _load(self, new_size):
        """Check the table, and note where its groups begin."""
        table, st = _Table(self._tab), self._st
        table.at += 1
        flags = table.take(0x1FFFF)
        self.history, self.code = flags & 1, flags >> 1
        like = [s for i, s in enumerate(self._old) if self.code >> i & 1]
        self._new = []
        end = 0
        for i in range(table.take(SEGMENTS_MAX)):
            was = like[i] if i < len(like) else (0, 0, 0)
            offset = was[0] + table.signed() & ALL
            length = was[1] + table.signed() & ALL
            address = was[2] + table.signed() & ALL
            if offset < end or length > new_size or offset > new_size - length or (offset | address) & 1:
                raise PackError("table segment")
            end = offset + length
            self._new.append((offset, length, address))
        count = st[10] = table.take(ENTRIES_MAX)
        ix = self._ix = array("I", bytes(4 * max(4, 4 * ((count + GROUP - 1) // GROUP))))
        start = 0
        for i in range(count):
            gap = table.take()
            start += gap
            if start > ALL or (i and not gap):
                raise PackError("table order")
            if i % GROUP == 0:
                ix[i // GROUP * 4], ix[i // GROUP * 4 + 1] = start, table.at
        shift = 0
        for i in range(count):
            shift += table.signed()
            if i % GROUP == 0:
                ix[i // GROUP * 4 + 2], ix[i // GROUP * 4 + 3] = shift & ALL, table.at
        if table.at != len(self._tab):
            raise PackError("table end")

    # The prefix of every frame, and the chunk's own output behind it

    def begin(self, first):
        """A chunk that fills the image from byte `first` on comes now. Returns the length of its prefix."""
        self._first = first
        self._before = min(first, HISTORY) if self.history else 0
        return self.size + self._before

    def read(self, position, buffer, offset, length):
        while length:
            if position < self.size:
                at = position & -VIEW
                n = min(length, at + VIEW - position, self.size - position)
                if at != self._at or position + n > self._end:
                    self._make(at, position + n)
                low = position - max(0, at - BEFORE)
                buffer[offset : offset + n] = memoryview(self._raw)[low : low + n]
            else:
                at = position - self.size + self._first - self._before
                n = min(length, PIECE - at % PIECE if at < self._first else PAGE - at % PAGE)
                self._again(at, buffer, offset, n)
            position += n
            offset += n
            length -= n

    def _make(self, first, end):
        """Make the page of the view that begins at byte `first` of the old image, up to byte `end`: what is behind was not asked for."""
        st, raw = self._st, self._raw
        low, high = max(0, first - BEFORE), min(self.size, end + BEHIND)
        self._at = -1
        self.part.readblocks(low // PAGE, memoryview(raw)[: high - low], low % PAGE)
        st[2], st[6], st[7] = low, first, end - first
        for i, (offset, length, address) in enumerate(self._old):
            a, b = max(first, offset), min(end, offset + length)
            if a >= b:
                continue
            code = st[8] = self.code >> i & 1
            if code:
                st[3] = offset + (max(a - 256 - offset, 0) & -2)
            else:
                st[3] = offset + (a - offset & -4)
            st[4], st[5], st[9] = b, offset + length, address - offset & ALL
            view(st, raw, self._tab, self._ix)
        self._at, self._end = first, end

    def _part(self, first, end, offset, length, address):
        """Set up the part of a segment in the page from `first` to `end`; return whether there is any."""
        st = self._st
        a, b = max(first, offset), min(end, offset + length)
        if a >= b:
            return False
        if a == first and a > offset:
            a += self._carries[first // PAGE] if first > self._first else 0
        st[3], st[4], st[9] = a, b, address - offset & ALL
        return True

    def back(self, page, first, size):
        """Take the absolute form of the page at byte `first` of the image back, where it stands; the pages of a chunk in their order."""
        st = self._st
        end = first + size
        carry = 0
        for one in self._new:
            if self._part(first, end, one[0], one[1], one[2]):
                st[2], st[14], st[15] = first, end, 1
                if form(st, page) == 2 and st[4] == end:
                    carry = 2
        self._carries[first // PAGE + 1] = carry

    def _again(self, low, buffer, offset, length):
        """Read bytes that are written already, and put them into absolute form anew."""
        st, window = self._st, self._window
        view_of = memoryview(buffer)
        self.image.readblocks(low // PAGE, view_of[offset : offset + length], low % PAGE)
        unit = PIECE if low < self._first else PAGE
        first = low - low % unit
        end = first + unit
        for one in self._new:
            if not self._part(first, end, one[0], one[1], one[2]):
                continue
            st[15] = 0
            at, b = st[3], st[4]
            more = 1
            while more == 1 and at < low + length:
                # 8 bytes more: every instruction that begins before the end is whole then
                stop = min(b, at + len(window), low + length + 8)
                self.image.readblocks(at // PAGE, memoryview(window)[: stop - at], at % PAGE)
                st[2], st[14] = at, stop
                more = form(st, window)
                # What is done is final up to where it stopped.
                done = st[3] if more == 1 else stop
                x, y = max(at, low), min(done, low + length)
                if x < y:
                    view_of[offset + x - low : offset + y - low] = memoryview(window)[x - at : y - at]
                at = done
