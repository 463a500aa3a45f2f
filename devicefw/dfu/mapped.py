"""The mapped delta, package kind 3 (docs/delta-format.md): the old image through the table, and the new one back from absolute form.

Holds the table as it came (at most 4096 bytes) and, for every 8th entry of it, where to go on reading (2 bytes an entry); one page of
2048 bytes of the view, and what is needed around it: 4 KB beside the table. Every way of being
wrong raises PackError.
"""

try:
    from dfu.mviper import form, view
except (ImportError, SyntaxError, ValueError, MemoryError):
    from dfu.plain import load

    form, view = load(__file__, "mapped", "mviper", ("form", "view"))

PAGE = 4096
VIEW = 2048
BEFORE, BEHIND = 260, 104  # what a page of the view depends on around it, rounded up
HISTORY, PIECE = 1 << 18, 256
WINDOW = 512  # what is looked at of the new image at one time
ALL = 0xFFFFFFFF


class Mapped:
    """`part`: where the old image stands, `size` bytes of it; `loaded`: the decoded table, as dfu.table gave it at last; `new_size`: the
    new image's length.

    read() is what the decoder of frames reads through; begin() says which chunk it decodes, back() makes a page of it what is written.
    """

    def __init__(self, part, size, loaded, new_size, image):
        self.part, self.size, self.image = part, size, image
        self._old, self._new, self._tab, self._ix, st, flags = loaded
        self.history, self.code = flags & 1, flags >> 1
        self._st = st
        self._raw = bytearray(VIEW + BEFORE + BEHIND)
        self._window = bytearray(WINDOW)
        self._at, self._end, self._stop = -1, 0, 0
        self._carries = bytearray(new_size // PAGE + 2)
        self._first = self._before = 0

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
        """Make the page of the view that begins at byte `first` of the old image, up to byte `end`: what is behind was not asked for.
        A page that is there as far as another byte is gone on with."""
        st, raw = self._st, self._raw
        low, high = max(0, first - BEFORE), min(self.size, end + BEHIND)
        done = self._end if first == self._at else first
        start = min(self.size, done + BEHIND) if done != first else low
        self._at = -1
        if start < high:
            self.part.readblocks(start // PAGE, memoryview(raw)[start - low : high - low], start % PAGE)
        st[2], st[6], st[7] = low, first, min(VIEW, self.size - first)
        for i, (offset, length, address) in enumerate(self._old):
            a, b = max(done, offset), min(end, offset + length)
            if a >= b:
                continue
            code = st[8] = self.code >> i & 1
            if a > offset and done != first:
                st[3] = self._stop
            else:
                back = 256 if code else 0
                st[3] = offset + (max(a - back - offset, 0) & (-2 if code else -4))
                st[11] = 0
            st[4], st[5], st[9] = b, offset + length, address - offset & ALL
            self._stop = view(st, raw, self._tab, self._ix)
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
