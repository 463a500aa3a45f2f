"""Decoding one magicless zstd frame (RFC 8878) with the flash as its window.

The output goes out in pages of 4096 bytes; what a match copies from further back than the page is read where it already
stands: through `reader.read(position, buffer, offset, length)`, position counting from the start of the prefix. So RAM
holds one page, the frame and 10 KB of tables, whatever the frame's size. Every way of being wrong raises ZstdError.
"""

from time import ticks_diff, ticks_ms

from dfu.errors import ZstdError

try:
    from dfu.zviper import fse_build, huf_fill, run

    VIPER = True
except (ImportError, SyntaxError, ValueError, MemoryError):
    from dfu.plain import load

    VIPER = False
    fse_build, huf_fill, run = load(__file__, "zstd", "zviper", ("fse_build", "huf_fill", "run"))

PAGE = 4096
TURN_MS = 15  # of work, then others have their turn; a copy out of the flash is what it may be longer
BLOCK_MAX = 131072

_LLX = b"\x00" * 16 + b"\x01\x01\x01\x01\x02\x02\x03\x03\x04\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10"
_MLX = b"\x00" * 32 + b"\x01\x01\x01\x01\x02\x02\x03\x03\x04\x04\x05\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10"
# Default distributions (RFC 8878, 3.1.1.3.2.2); 255 stands for "less than 1".
_DLL = b"\x04\x03\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x01\x01\x01\x02\x02\x02\x02\x02\x02\x02\x02\x02\x03\x02\x01\x01\x01\x01\x01\xff\xff\xff\xff"  # noqa: E501
_DML = b"\x01\x04\x03\x02\x02\x02\x02\x02\x02" + b"\x01" * 37 + b"\xff" * 7
_DOF = b"\x01\x01\x01\x01\x01\x01\x02\x02\x02" + b"\x01" * 15 + b"\xff" * 5


class Decoder:
    """Holds the tables and the page; one for the life of an update. `page` is where each page is given out."""

    def __init__(self, room=None):
        # What a state gives: bits to read and base of the next one, and its symbol; of LL, ML, OF, and of Huffman weights. Then literals.
        if room is None:
            from dfu.room import make

            room = make()
        self._t, self._y, self._ht, self._hy, st, self._norm, self._w, self.page = room
        self._st = st
        self._y[1280:] = _LLX + _MLX
        for extra, at, base in ((_LLX, 40, 0), (_MLX, 76, 3)):
            for bits in extra:
                st[at] = base
                base += 1 << bits
                at += 1

    def decode(self, src, start, end, prefix, size, reader, exact=True):
        """Decode src[start:end], exactly one frame, to `size` bytes (or at most) behind `prefix` bytes that `reader` reads.

        A generator. It yields the length of each finished page, which is in `self.page` then; once it is gone on with, `reader` must
        read that, too. In between it yields 0, so that others have their turn: a chunk may be a whole image.
        """
        st = self._st
        self._logs = [-1, -1, -1]
        self._mb = 0
        p = start
        if p >= end:
            raise ZstdError("empty")
        fd = src[p]
        p += 1
        if fd & 0x0F:  # dictionary identifier, checksum, reserved
            raise ZstdError("frame header")
        if not fd & 0x20:
            p += 1
        p += (1 if fd & 0x20 else 0, 2, 4, 8)[fd >> 6]
        st[16], st[17], st[18] = 1, 4, 8
        st[22] = 0
        st[23] = min(PAGE, size)
        st[24] = prefix
        st[25] = size
        self._reader, self._since = reader, ticks_ms()
        while True:
            if p + 3 > end:
                raise ZstdError("block header")
            h = src[p] | src[p + 1] << 8 | src[p + 2] << 16
            p += 3
            n = h >> 3
            kind = (h >> 1) & 3
            if n > BLOCK_MAX:
                raise ZstdError("block size")
            if kind == 0:
                if p + n > end:
                    raise ZstdError("block")
                yield from self._plain(src, 0, p, n)
                p += n
            elif kind == 1:
                if p >= end:
                    raise ZstdError("block")
                yield from self._plain(src, 1, p, n)
                p += 1
            elif kind == 2:
                if n < 2 or p + n > end:
                    raise ZstdError("block")
                yield from self._block(src, p, p + n)
                p += n
            else:
                raise ZstdError("block type")
            if h & 1:
                break
        if p != end or (st[25] and exact):
            raise ZstdError("length")
        if st[22]:
            yield st[22]

    def _turn(self):
        """Say whether others should have their turn now."""
        return ticks_diff(ticks_ms(), self._since) >= TURN_MS

    def _page(self):
        """The page was given out: begin the next one."""
        st = self._st
        st[24] += st[22]
        st[22] = 0
        st[23] = min(PAGE, st[25])
        self._since = ticks_ms()

    def _plain(self, src, ltype, at, n):
        st = self._st
        st[0], st[1], st[2], st[27] = ltype, at, n, n
        st[15] = 0
        yield from self._go(src)

    def _go(self, src):
        """Run the block whose literals and sequences are set up in st."""
        st, page = self._st, self.page
        st[26] = 0
        st[29] = 0
        while True:
            event = run(st, src, page, self._t, self._y)
            if event == 0:
                if st[22] == PAGE:
                    yield PAGE
                    self._page()
                return
            if event == 1:
                if not st[25]:
                    raise ZstdError("too long")
                yield st[22]
                self._page()
            elif event == 2:
                o, n = st[22], st[28]
                self._reader.read(st[24] + o - st[21], page, o, n)
                st[22] = o + n
                st[20] -= n
                st[25] -= n
                if self._turn():
                    yield 0
                    self._since = ticks_ms()
            elif event == 3:
                self._next_stream(src)
            else:
                raise ZstdError("sequence %d" % event)

    def _next_stream(self, src):
        if not self._streams:
            raise ZstdError("literals")
        first, end, count = self._streams.pop(0)
        self._open(src, first, end, 3)
        self._st[2] = count

    def _open(self, src, first, end, at):
        """Set up a reverse bit stream at st[at..at+3]; its last byte's highest 1 bit is the mark."""
        st = self._st
        last = src[end - 1] if end > first else 0
        if not last:
            raise ZstdError("stream")
        bits = 0
        while last >> (bits + 1):
            bits += 1
        st[at] = end - 2
        st[at + 1] = first
        st[at + 2] = last
        st[at + 3] = bits

    def _block(self, src, p, end):
        st = self._st
        x = src[p]
        kind = x & 3
        sf = (x >> 2) & 3
        self._streams = []
        if kind < 2:
            n = 1 if not sf & 1 else sf - (sf >> 1) + 1
            if p + n >= end:
                raise ZstdError("literals")
            if n == 1:
                count = x >> 3
            elif n == 2:
                count = x >> 4 | src[p + 1] << 4
            else:
                count = x >> 4 | src[p + 1] << 4 | src[p + 2] << 12
            p += n
            st[0], st[1], st[2] = kind, p, count
            p += count if kind == 0 else 1
        else:
            n = 3 if sf < 2 else sf + 2
            if p + n >= end:
                raise ZstdError("literals")
            v = src[p] | src[p + 1] << 8 | src[p + 2] << 16
            if n == 3:
                count, packed = (v >> 4) & 1023, (v >> 14) & 1023
            elif n == 4:
                count, packed = (v >> 4) & 16383, v >> 18 | src[p + 3] << 6
            else:
                count, packed = (v >> 4 | src[p + 3] << 20) & 0x3FFFF, v >> 22 | src[p + 3] << 2 | src[p + 4] << 10
            packed &= (1 << (10, 10, 14, 18)[sf]) - 1
            p += n
            stop = p + packed
            if stop > end:
                raise ZstdError("literals")
            if kind == 2:
                p = self._huffman(src, p, stop)
            elif not self._mb:
                raise ZstdError("no table to repeat")
            st[0], st[2], st[7] = 2, 0, self._mb
            if sf == 0:
                self._streams = [(p, stop, count)]
            else:
                if p + 6 > stop or count < 6:
                    raise ZstdError("streams")
                k = (count + 3) >> 2
                at = p + 6
                for i in range(3):
                    size = src[p + 2 * i] | src[p + 2 * i + 1] << 8
                    self._streams.append((at, at + size, k))
                    at += size
                if at >= stop:
                    raise ZstdError("streams")
                self._streams.append((at, stop, count - 3 * k))
            p = stop
        if count > BLOCK_MAX or p >= end:
            raise ZstdError("literals")
        st[27] = count
        n = src[p]
        p += 1
        if n >= 128:
            if p + 2 > end:
                raise ZstdError("sequences")
            if n < 255:
                n = (n - 128) << 8 | src[p]
                p += 1
            else:
                n = (src[p] | src[p + 1] << 8) + 0x7F00
                p += 2
        st[15] = n
        if n:
            if p >= end:
                raise ZstdError("sequences")
            modes = src[p]
            if modes & 3:
                raise ZstdError("modes")
            p = self._table(modes >> 6, src, p + 1, end, 0, _DLL, 6, 0, 9, 35)
            p = self._table(modes >> 4 & 3, src, p, end, 1024, _DOF, 5, 1, 8, 31)
            p = self._table(modes >> 2 & 3, src, p, end, 512, _DML, 6, 2, 9, 52)
            self._open(src, p, end, 8)
            for i in range(3):
                st[12 + i] = self._bits(src, self._logs[i])
        elif p != end:
            raise ZstdError("sequences")
        if self._turn():
            yield 0
            self._since = ticks_ms()
        yield from self._go(src)

    def _bits(self, src, k):
        """Take k bits from the sequences' stream."""
        st = self._st
        while st[11] < k:
            st[10] = (st[10] & 0xFFFF) << 8 | (src[st[8]] if st[8] >= st[9] else 0)
            st[8] -= 1
            st[11] += 8
        st[11] -= k
        return (st[10] >> st[11]) & ((1 << k) - 1)

    def _table(self, mode, src, p, end, at, default, log, which, log_max, symbol_max):
        norm, st = self._norm, self._st
        if mode == 3:
            if self._logs[which] < 0:
                raise ZstdError("no table to repeat")
            return p
        if mode == 1:
            if p >= end or src[p] > symbol_max:
                raise ZstdError("symbol")
            self._t[at], self._y[at] = 0, src[p]
            self._logs[which] = 0
            return p + 1
        if mode == 0:
            n = len(default)
            for i in range(n):
                norm[i] = 32767 if default[i] == 255 else default[i]
        else:
            n, log, p = self._read_norm(src, p, end, log_max, symbol_max)
        st[30], st[31], st[32] = n, log, at
        fse_build(st, norm, self._t, self._y)
        self._logs[which] = log
        return p

    def _read_norm(self, src, p, end, log_max, symbol_max):
        """Read an FSE table description; the counts in self._norm add up to 1 << log, or this raises."""
        norm = self._norm
        bit = p * 8
        last = end * 8

        def take(n):
            nonlocal bit
            k = bit >> 3
            v = 0
            for j in range(3):
                if k + j < end:
                    v |= src[k + j] << (8 * j)
            bit += n
            return (v >> ((bit - n) & 7)) & ((1 << n) - 1)

        log = take(4) + 5
        if log > log_max:
            raise ZstdError("table log")
        left = (1 << log) + 1
        symbol = 0
        while left > 1:
            if symbol > symbol_max or bit > last:
                raise ZstdError("table")
            n = 0
            while left >> n:
                n += 1
            v = take(n)
            low = (1 << (n - 1)) - 1
            threshold = (1 << n) - 1 - left
            if (v & low) < threshold:
                bit -= 1
                v &= low
            elif v > low:
                v -= threshold
            count = v - 1
            left -= 1 if count < 0 else count
            norm[symbol] = 32767 if count < 0 else count
            symbol += 1
            if count == 0:
                while True:
                    repeat = take(2)
                    if symbol + repeat > symbol_max + 1 or bit > last:
                        raise ZstdError("table")
                    for _ in range(repeat):
                        norm[symbol] = 0
                        symbol += 1
                    if repeat != 3:
                        break
        if left != 1 or bit > last:
            raise ZstdError("table")
        return symbol, log, (bit + 7) >> 3

    def _huffman(self, src, p, end):
        """Read a Huffman table description into self._t; return what is behind it."""
        w, st = self._w, self._st
        if p >= end:
            raise ZstdError("huffman")
        head = src[p]
        p += 1
        if head >= 128:
            n = head - 127
            if p + ((n + 1) >> 1) > end:
                raise ZstdError("huffman")
            for i in range(n):
                x = src[p + (i >> 1)]
                w[i] = x & 15 if i & 1 else x >> 4
            p += (n + 1) >> 1
        else:
            stop = p + head
            if stop > end or not head:
                raise ZstdError("huffman")
            n = self._weights(src, p, stop)
            p = stop
        total = 0
        for i in range(n):
            if w[i] > 11:
                raise ZstdError("weight")
            if w[i]:
                total += 1 << (w[i] - 1)
        mb = 0
        while total >> mb:
            mb += 1
        left = (1 << mb) - total
        if not total or mb > 11 or left & (left - 1):
            raise ZstdError("weights")
        k = 0
        while left >> k:
            k += 1
        w[n] = k
        st[30], st[31] = n + 1, mb
        huf_fill(st, w, self._t)
        self._mb = mb
        return p

    def _weights(self, src, p, end):
        """Decode FSE-compressed weights into self._w: two interleaved states, read from the back."""
        st, w, t, y = self._st, self._w, self._ht, self._hy
        n, log, p = self._read_norm(src, p, end, 6, 63)
        st[30], st[31], st[32] = n, log, 0
        fse_build(st, self._norm, t, y)
        last = src[end - 1] if end > p else 0
        if not last:
            raise ZstdError("weights")
        bits = (end - p) * 8 - 8
        while last > 1:
            last >>= 1
            bits += 1

        def take(k):
            nonlocal bits
            bits -= k
            low = max(bits, 0)  # before the first bit there are zeros
            at = p + (low >> 3)
            v = src[at]
            if at + 1 < end:
                v |= src[at + 1] << 8
            return v >> (low & 7) << (low - bits) & (1 << k) - 1

        a, b = take(log), take(log)
        if bits < 0:
            raise ZstdError("weights")
        n = 0
        while True:
            if n > 253:  # with the one that is not said, 256 symbols
                raise ZstdError("weights")
            e = t[a]
            w[n] = y[a]
            n += 1
            k = e >> 12
            if bits < k:
                w[n] = y[b]
                return n + 1
            a = (e & 4095) + take(k)
            a, b = b, a
