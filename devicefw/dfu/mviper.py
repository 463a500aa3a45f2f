# The inner loops of the mapped delta: docs/delta-format.md, "The view" and "The absolute form". Viper: no bounds checks, so what
# mapped.py promises in `st` holds for every index here. mapped.py falls back to plain bytecode of this same file.
#
# Words are 32 bits wherever this runs: `m` is all ones, which is 64-bit Python's and viper's mask and changes nothing on a 32-bit
# chip; unsigned comparisons are said. Constants above 2^30 would be objects there, so they come in `st`.
#
# st, 192 words:
#  0 all ones   1 registers that a call overwrites
#  2 place in the file of raw[0]   3 where to begin   4 the part's end in the page   5 the segment's end
#  6 the page's first byte   7 its length   8 1: code   9 the segment's address less its offset
# 10 entries of the table   11 registers that lui has put something into   14 end of what raw holds   15 1: back
# 32.. what lui put into each register   64.. what the view says that it did
# 96.. entries found before, each at a place that its addresses have in common: its start, its length, its shift
#
# tab: for each highest byte of an address 0, or the number n of the 32 bits at 252 + 4 n, one for each known block of 512 KB; the table as
# it came. ix: for every 8th entry its start, where the next start stands in tab, its shift, where the next shift stands.
import micropython


@micropython.viper
def view(st: ptr32, raw: ptr8, tab: ptr8, ix: ptr32) -> int:
    # Put the references of one segment's part of a page through the table, where they stand: what is read lies always behind what
    # has been written, and nothing outside of the page is written.
    m = int(st[0])
    base = int(st[2])
    at = int(st[3])
    b = int(st[4])
    e = int(st[5])
    first = int(st[6])
    size = int(st[7])
    code = int(st[8])
    move = int(st[9])
    count = int(st[10])
    calls = int(st[1])
    gap = first - base
    live = int(st[11])
    while at < b:
        i = at - base
        kind = 0
        x = 0
        w = 0
        f = 0
        rd = 0
        op = 0
        step = 4
        if code == 0:
            if at + 4 > e:
                break
            k = int(tab[int(raw[i + 3])])
            w = int(raw[i + 2])
            if k != 0 and (int(tab[252 + 4 * k + (w >> 6)]) >> ((w >> 3) & 7)) & 1:
                x = int(raw[i]) | int(raw[i + 1]) << 8 | int(raw[i + 2]) << 16 | int(raw[i + 3]) << 24
                kind = 5
        else:
            if at + 2 > e:
                break
            h = int(raw[i]) | int(raw[i + 1]) << 8
            k = h >> 13
            if h & 3 != 3 and not (h & 3 == 1 and (k & 3 == 1 or k > 5)):
                at += 2
                if live == 0:
                    continue
                rd = (h >> 7) & 31
                if h & 3 == 0:
                    rd = 8 + ((h >> 2) & 7)
                    if k == 1 or k > 3:
                        rd = 0
                elif h & 3 == 1:
                    if k == 4:
                        rd = 8 + (rd & 7)
                elif k == 4:
                    if (h >> 2) & 31 == 0:
                        rd = (h >> 12) & 1
                        if h & 0xF07F == 0x9002:
                            live &= m ^ calls
                elif k == 2:
                    if (calls >> rd) & 1 == 0:
                        rd = 0
                elif k != 0:
                    rd = 0
                live &= m ^ (1 << rd)
                continue
            if h & 3 == 1:
                # A short jump or branch, the only ones that hold an offset.
                w = h
                step = 2
                kind = 6
                op = 0x63
                if k == 1:
                    op = 0x6F
                    rd = 1
                if k > 5:
                    x = ((h >> 4) & 0x100) | ((h >> 7) & 0x18) | ((h << 1) & 0xC0) | ((h >> 2) & 6) | ((h << 3) & 0x20)
                    x = (x ^ 0x100) - 0x100
                else:
                    x = ((h >> 1) & 0xB40) | ((h >> 7) & 0x10) | ((h << 2) & 0x400) | ((h << 1) & 0x80) | ((h >> 2) & 14) | ((h << 3) & 0x20)
                    x = (x ^ 0x800) - 0x800
            else:
                if at + 4 > e:
                    break
                w = h | int(raw[i + 2]) << 16 | int(raw[i + 3]) << 24
                op = h & 127
                rd = (h >> 7) & 31
                if op == 0x63:
                    kind = 6
                    x = ((w >> 7) & 0x1E) | ((w >> 20) & 0x7E0) | ((w << 4) & 0x800) | ((w >> 19) & 0x1000)
                    x = (x ^ 0x1000) - 0x1000
            if kind == 6:
                pc = (move + at) & m
                x = (pc + x) & m
                # Mostly both have moved alike.
                k = 96 + 3 * ((pc >> 10) & 31)
                h = int(st[k + 1])
                k = int(st[k])
                if (x ^ pc) >> 19 == 0 and uint((x - k) & m) < uint(h) and uint((pc - k) & m) < uint(h):
                    kind = 0
            elif op == 0x6F:
                k = ((w >> 11) & 0x100000) | (w & 0xFF000) | ((w >> 9) & 0x800) | ((w >> 20) & 0x7FE)
                x = (move + at + (k ^ 0x100000) - 0x100000) & m
                kind = 1
            elif op == 0x17:
                live &= m ^ (1 << rd)
                if rd != 0 and at + 8 <= e:
                    f = int(raw[i + 4]) | int(raw[i + 5]) << 8 | int(raw[i + 6]) << 16 | int(raw[i + 7]) << 24
                    k = f & 127
                    if (f >> 15) & 31 == rd and (k == 3 or k == 0x23 or ((k == 0x13 or k == 0x67) and f & 0x7000 == 0)):
                        if k == 0x23:
                            k = ((f >> 20) & 0xFE0) | ((f >> 7) & 31)
                        else:
                            k = (f >> 20) & 0xFFF
                        x = (move + at + ((w >> 12) << 12) + (k ^ 0x800) - 0x800) & m
                        kind = 2
                        step = 8
            elif op == 0x37:
                live &= m ^ (1 << rd)
                if rd != 0:
                    # Looking ahead for the first use.
                    x = (w >> 12) << 12
                    keeps = 1 ^ ((calls >> rd) & 1)
                    i += 4
                    p = at + 4
                    n = 24
                    while n > 0:
                        n -= 1
                        if p + 4 > e:
                            break
                        h = int(raw[i]) | int(raw[i + 1]) << 8
                        if h & 3 != 3:
                            k = h >> 13
                            r = (h >> 7) & 31
                            if h & 3 == 0:
                                r = 8 + ((h >> 2) & 7)
                                if k == 1 or k > 3:
                                    r = 0
                            elif h & 3 == 1:
                                if k == 1:
                                    r = 1
                                elif k == 4:
                                    r = 8 + (r & 7)
                                elif k > 4:
                                    r = 0
                            elif k == 4:
                                if (h >> 2) & 31 == 0:
                                    r = (h >> 12) & 1
                            elif k == 2:
                                if keeps:
                                    r = 0
                            elif k != 0:
                                r = 0
                            if r == rd or (keeps == 0 and (h & 0xE003 == 0x2001 or h & 0xF07F == 0x9002)):
                                break
                            i += 2
                            p += 2
                            continue
                        f = h | int(raw[i + 2]) << 16 | int(raw[i + 3]) << 24
                        k = f & 127
                        if (f >> 15) & 31 == rd and (k == 3 or k == 0x23 or ((k == 0x13 or k == 0x67) and f & 0x7000 == 0)):
                            if k == 0x23:
                                k = ((f >> 20) & 0xFE0) | ((f >> 7) & 31)
                            else:
                                k = (f >> 20) & 0xFFF
                            x += (k ^ 0x800) - 0x800
                            break
                        r = (f >> 7) & 31
                        if r == rd:
                            if k != 0x63 and k != 0x23 and k != 0x0F and not (k == 3 and keeps and (f >> 15) & 31 == 2):
                                break
                        if keeps == 0 and r != 0 and (k == 0x6F or k == 0x67):
                            break
                        i += 4
                        p += 4
                    x &= m
                    kind = 3
            elif live != 0:
                r = (w >> 15) & 31
                if (live >> r) & 1 and (op == 3 or op == 0x23 or ((op == 0x13 or op == 0x67) and w & 0x7000 == 0)):
                    if op == 0x23:
                        k = ((w >> 20) & 0xFE0) | ((w >> 7) & 31)
                    else:
                        k = (w >> 20) & 0xFFF
                    x = (int(st[32 + r]) + (k ^ 0x800) - 0x800) & m
                    kind = 4
        words = 0
        v = 0
        v2 = 0
        if kind != 0:
            # t = T(x); of a branch then T of its own place, too
            while True:
                t = x
                k = int(tab[(x >> 24) & 255])
                known = 0
                if k != 0:
                    known = (int(tab[252 + 4 * k + ((x >> 22) & 3)]) >> ((x >> 19) & 7)) & 1
                if known and count > 0:
                    slot = 96 + 3 * ((x >> 10) & 31)
                    if uint((x - int(st[slot])) & m) < uint(int(st[slot + 1])):
                        t = (x + int(st[slot + 2])) & m
                    elif uint(x) >= uint(int(ix[0])):
                        lo = 0
                        hi = (count + 7) >> 3
                        while hi - lo > 1:
                            k = (lo + hi) >> 1
                            if uint(x) >= uint(int(ix[4 * k])):
                                lo = k
                            else:
                                hi = k
                        start = int(ix[4 * lo])
                        p = int(ix[4 * lo + 1])
                        shift = int(ix[4 * lo + 2])
                        q = int(ix[4 * lo + 3])
                        n = count - 8 * lo
                        if n > 8:
                            n = 8
                        k = 1
                        reach = 0
                        while k < n:
                            reach = 0
                            r = 0
                            while int(tab[p]) > 127:
                                reach |= (int(tab[p]) & 127) << r
                                r += 7
                                p += 1
                            reach |= int(tab[p]) << r
                            p += 1
                            if uint((x - start) & m) < uint(reach & m):
                                break
                            start = (start + reach) & m
                            reach = 0
                            k += 1
                        if reach == 0:
                            # The last of its group: it reaches to the next group, or to the end of the addresses.
                            if 8 * lo + n < count:
                                reach = int(ix[4 * lo + 4]) - start
                            else:
                                reach = m - start
                        while k > 1:
                            k -= 1
                            r = int(tab[q])
                            n = (r & 127) >> 1
                            i = r & 1
                            h = 6
                            while r > 127:
                                q += 1
                                r = int(tab[q])
                                n |= (r & 127) << h
                                h += 7
                            q += 1
                            if i:
                                shift -= n + 1
                            else:
                                shift += n
                        shift &= m
                        t = (x + shift) & m
                        st[slot] = start & m
                        st[slot + 1] = reach & m
                        st[slot + 2] = shift
                if kind != 6:
                    break
                kind = 7
                x = pc
                v2 = t
            if kind == 5:
                v = t
                words = 1
            elif kind == 7:
                t = v2 - t
                words = 1
                if step == 4:
                    v = w & 0x1FFF07F | ((t & 0x1000) << 19) | ((t & 0x7E0) << 20) | ((t & 0x1E) << 7) | ((t & 0x800) >> 4)
                elif w >> 13 > 5:
                    v = w & 0xE383 | ((t & 0x100) << 4) | ((t & 0x18) << 7) | ((t & 0xC0) >> 1) | ((t & 6) << 2) | ((t & 0x20) >> 3)
                else:
                    v = w & 0xE003 | ((t & 0xB40) << 1) | ((t & 0x10) << 7) | ((t & 0x400) >> 2) | ((t & 0x80) >> 1) | ((t & 14) << 2) | ((t & 0x20) >> 3)
            elif kind == 1:
                v = w & 0xFFF | ((t >> 1) & 0xFFFFF) << 12
                words = 1
            elif kind == 2:
                v = w & 0xFFF | ((t + 0x800) >> 12) << 12
                if f & 127 == 0x23:
                    v2 = f & 0x1FFF07F | ((t & 0xFE0) << 20) | ((t & 31) << 7)
                else:
                    v2 = f & 0xFFFFF | ((t & 0xFFF) << 20)
                words = 2
            elif kind == 3:
                if known:
                    k = ((t + 0x800) >> 12) << 12 & m
                    v = w & 0xFFF | k
                    words = 1
                    st[32 + rd] = (w >> 12) << 12
                    st[64 + rd] = k
                    live |= 1 << rd
            elif known:
                t = (t - int(st[64 + ((w >> 15) & 31)])) & m
                if uint((t + 2048) & m) < uint(4096):
                    if op == 0x23:
                        v = w & 0x1FFF07F | ((t & 0xFE0) << 20) | ((t & 31) << 7)
                    else:
                        v = w & 0xFFFFF | ((t & 0xFFF) << 20)
                    words = 1
        if words:
            p = at - first
            while words > 0:
                words -= 1
                k = 4 - (step & 3)  # so many bytes of it: 2 of a compressed one, else 4
                while k > 0:
                    if p >= 0 and p < size:
                        raw[p + gap] = v & 255
                    v >>= 8
                    p += 1
                    k -= 1
                v = v2
        if live != 0 and code != 0 and op != 0x37:
            # What the instruction overwrites, and what calls do.
            if kind == 2:
                w = f
                op = f & 127
                rd = (f >> 7) & 31
            if op != 0x63 and op != 0x23 and op != 0x0F:
                if not (op == 3 and (w >> 15) & 31 == 2 and (calls >> rd) & 1 == 0):
                    live &= m ^ (1 << rd)
                if rd != 0 and (op == 0x6F or op == 0x67):
                    live &= m ^ calls
        at += step
    st[11] = live
    return at


@micropython.viper
def form(st: ptr32, buf: ptr8) -> int:
    # Put one segment's part of a page of the new image into absolute form, or back (st[15]), where it stands. Returns 0 at its end,
    # 2 if an instruction lies over its end, 1 if more data is needed; st[3] is where it stopped.
    m = int(st[0])
    base = int(st[2])
    at = int(st[3])
    b = int(st[4])
    end = int(st[14])
    move = int(st[9])
    back = int(st[15])
    found = 0
    while at + 2 <= b:
        if at + 8 > end and end < b:
            found = 1
            break
        i = at - base
        h = int(buf[i])
        if h & 3 != 3:
            at += 2
            continue
        if at + 4 > b:
            found = 2
            break
        op = h & 127
        if op == 0x6F:
            w = h | int(buf[i + 1]) << 8 | int(buf[i + 2]) << 16 | int(buf[i + 3]) << 24
            if back:
                k = ((w >> 11) & 0x1FFFFE) - (move + at)
                w = w & 0xFFF | (k & 0x100000) << 11 | (k & 0x7FE) << 20 | (k & 0x800) << 9 | k & 0xFF000
            else:
                k = ((w >> 11) & 0x100000) | (w & 0xFF000) | ((w >> 9) & 0x800) | ((w >> 20) & 0x7FE)
                k = move + at + (k ^ 0x100000) - 0x100000
                w = w & 0xFFF | ((k >> 1) & 0xFFFFF) << 12
            buf[i + 1] = (w >> 8) & 255
            buf[i + 2] = (w >> 16) & 255
            buf[i + 3] = (w >> 24) & 255
        elif op == 0x17 and at + 8 <= b:
            w = h | int(buf[i + 1]) << 8 | int(buf[i + 2]) << 16 | int(buf[i + 3]) << 24
            f = int(buf[i + 4]) | int(buf[i + 5]) << 8 | int(buf[i + 6]) << 16 | int(buf[i + 7]) << 24
            rd = (w >> 7) & 31
            k = f & 127
            if rd != 0 and (f >> 15) & 31 == rd and (k == 3 or k == 0x23 or ((k == 0x13 or k == 0x67) and f & 0x7000 == 0)):
                if k == 0x23:
                    t = ((f >> 20) & 0xFE0) | ((f >> 7) & 31)
                else:
                    t = (f >> 20) & 0xFFF
                t = ((w >> 12) << 12) + (t ^ 0x800) - 0x800
                if back:
                    t -= move + at
                else:
                    t += move + at
                w = w & 0xFFF | ((t + 0x800) >> 12) << 12
                if k == 0x23:
                    f = f & 0x1FFF07F | ((t & 0xFE0) << 20) | ((t & 31) << 7)
                else:
                    f = f & 0xFFFFF | ((t & 0xFFF) << 20)
                buf[i + 1] = (w >> 8) & 255
                buf[i + 2] = (w >> 16) & 255
                buf[i + 3] = (w >> 24) & 255
                buf[i + 4] = f & 255
                buf[i + 5] = (f >> 8) & 255
                buf[i + 6] = (f >> 16) & 255
                buf[i + 7] = (f >> 24) & 255
                at += 4
        at += 4
    st[3] = at
    return found
