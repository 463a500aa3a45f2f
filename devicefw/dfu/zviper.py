# The inner loops of the zstd decoder (RFC 8878). Viper: no bounds checks, so every index here is checked against what the
# caller promises in `st`, or bounded by how the tables were built. zstd.py falls back to plain bytecode of this same file.
#
# st, 129 words (S_* in zstd.py):
#  0 literal type: 0 raw, 1 one byte, 2 Huffman     1 position of raw literals, or of the one byte
#  2 literals left in this stream                   3 Huffman: next byte   4 first byte   5 bits   6 their count   7 table bits
#  8 sequences: next byte   9 first byte   10 bits   11 their count   12 13 14 states of LL OF ML   15 sequences left
# 16 17 18 repeated offsets   19 literals left of this sequence   20 match left   21 offset
# 22 place in the page   23 end of the page   24 bytes of prefix and output before the page   25 bytes still to come
# 26 1: a sequence is under way   27 literals left in the block   28 far copy: bytes   29 1: states need their bits
# 40.. bases of literal lengths   76.. of match lengths
#
# t, y: bits << 12 | base and symbol of the states of LL, ML (from 512 on) and OF (from 1024 on); t, from 1280 on: the Huffman table;
# y, from 1280 on: extra bits of literal lengths, from 1316 on: of match lengths.
import micropython


@micropython.viper
def run(st: ptr32, src: ptr8, out: ptr8, t: ptr16, y: ptr8) -> int:
    # Go on with the block until something is needed. 0 block done, 1 page full, 2 far copy of st[28] bytes from st[21] back,
    # 3 next Huffman stream, negative: the frame is wrong.
    o = int(st[22])
    end = int(st[23])
    left = int(st[25])
    p = int(st[8])
    p0 = int(st[9])
    acc = int(st[10])
    cnt = int(st[11])
    ltype = int(st[0])
    event = -1
    while True:
        if int(st[26]) == 0:
            n = int(st[15])
            if n == 0:
                # What remains of the literals ends the block.
                ll = int(st[27])
                if ll > left:
                    event = -2
                    break
                st[19] = ll
                st[20] = 0
                st[26] = 2
            else:
                if int(st[29]) == 1:
                    # The bits for the next states come before the next sequence.
                    k = int(t[int(st[12])]) >> 12
                    b = int(t[int(st[12])]) & 4095
                    while cnt < k:
                        acc = (acc & 0xFFFFFF) << 8
                        if p >= p0:
                            acc |= int(src[p])
                        p -= 1
                        cnt += 8
                    cnt -= k
                    st[12] = b + ((acc >> cnt) & ((1 << k) - 1))
                    k = int(t[512 + int(st[14])]) >> 12
                    b = int(t[512 + int(st[14])]) & 4095
                    while cnt < k:
                        acc = (acc & 0xFFFFFF) << 8
                        if p >= p0:
                            acc |= int(src[p])
                        p -= 1
                        cnt += 8
                    cnt -= k
                    st[14] = b + ((acc >> cnt) & ((1 << k) - 1))
                    k = int(t[1024 + int(st[13])]) >> 12
                    b = int(t[1024 + int(st[13])]) & 4095
                    while cnt < k:
                        acc = (acc & 0xFFFFFF) << 8
                        if p >= p0:
                            acc |= int(src[p])
                        p -= 1
                        cnt += 8
                    cnt -= k
                    st[13] = b + ((acc >> cnt) & ((1 << k) - 1))
                st[29] = 1
                cl = int(y[int(st[12])])
                cm = int(y[512 + int(st[14])])
                k = int(y[1024 + int(st[13])])
                if k > 24:
                    event = -3
                    break
                while cnt < k:
                    acc = (acc & 0xFFFFFF) << 8
                    if p >= p0:
                        acc |= int(src[p])
                    p -= 1
                    cnt += 8
                cnt -= k
                of = (1 << k) + ((acc >> cnt) & ((1 << k) - 1))
                k = int(y[1316 + cm])
                while cnt < k:
                    acc = (acc & 0xFFFFFF) << 8
                    if p >= p0:
                        acc |= int(src[p])
                    p -= 1
                    cnt += 8
                cnt -= k
                ml = int(st[76 + cm]) + ((acc >> cnt) & ((1 << k) - 1))
                k = int(y[1280 + cl])
                while cnt < k:
                    acc = (acc & 0xFFFFFF) << 8
                    if p >= p0:
                        acc |= int(src[p])
                    p -= 1
                    cnt += 8
                cnt -= k
                ll = int(st[40 + cl]) + ((acc >> cnt) & ((1 << k) - 1))
                if of > 3:
                    of -= 3
                    st[18] = st[17]
                    st[17] = st[16]
                    st[16] = of
                else:
                    if ll == 0:
                        of += 1
                    if of == 1:
                        of = int(st[16])
                    elif of == 2:
                        of = int(st[17])
                        st[17] = st[16]
                        st[16] = of
                    else:
                        if of == 3:
                            of = int(st[18])
                        else:
                            of = int(st[16]) - 1
                        st[18] = st[17]
                        st[17] = st[16]
                        st[16] = of
                if 8 * (p - p0 + 1) + cnt < 0:
                    event = -4  # it was read below its start. Also keeps st[8] from becoming negative, which viper may load unsigned
                    break
                if ll + ml > left or ll > int(st[27]) or of < 1:
                    event = -5
                    break
                st[15] = n - 1
                st[19] = ll
                st[20] = ml
                st[21] = of
                st[26] = 1
        # Literals
        ll = int(st[19])
        if ll > 0:
            room = end - o
            if room == 0:
                event = 1
                break
            if ll > room:
                ll = room
            k = int(st[2])
            if ll > k:
                ll = k
            if ll == 0:
                event = 3
                break
            st[2] = k - ll
            st[19] = int(st[19]) - ll
            st[27] = int(st[27]) - ll
            left -= ll
            stop = o + ll
            if ltype == 0:
                k = int(st[1])
                st[1] = k + ll
                while o < stop:
                    out[o] = src[k]
                    o += 1
                    k += 1
            elif ltype == 1:
                k = int(src[int(st[1])])
                while o < stop:
                    out[o] = k
                    o += 1
            else:
                hp = int(st[3])
                h0 = int(st[4])
                ha = int(st[5])
                hc = int(st[6])
                mb = int(st[7])
                mask = (1 << mb) - 1
                while o < stop:
                    while hc < mb:
                        ha = (ha & 0xFFFF) << 8
                        if hp >= h0:
                            ha |= int(src[hp])
                        hp -= 1
                        hc += 8
                    k = int(t[1280 + ((ha >> (hc - mb)) & mask)])
                    hc -= k & 255
                    out[o] = k >> 8
                    o += 1
                if 8 * (hp - h0 + 1) + hc < 0:
                    event = -7  # below the start of its stream, as above
                    break
                st[3] = hp
                st[5] = ha
                st[6] = hc
            continue
        # Match
        ml = int(st[20])
        if ml > 0:
            room = end - o
            if room == 0:
                event = 1
                break
            if ml > room:
                ml = room
            of = int(st[21])
            if of > o:
                if of > int(st[24]) + o:
                    event = -6
                    break
                if ml > of - o:
                    ml = of - o
                st[28] = ml
                event = 2
                break
            s = o - of
            stop = o + ml
            while o < stop:
                out[o] = out[s]
                o += 1
                s += 1
            st[20] = int(st[20]) - ml
            left -= ml
            continue
        if int(st[26]) == 2:
            event = 0
            break
        st[26] = 0
    st[22] = o
    st[25] = left
    st[8] = p
    st[10] = acc & 0xFFFFFF
    st[11] = cnt
    return event


@micropython.viper
def fse_build(st: ptr32, norm: ptr16, tab: ptr16, sym: ptr8) -> int:
    # st[30] symbols, st[31] log, st[32] place of the table; norm holds counts that add up to 1 << log (32767: "less than 1"),
    # norm[64..] is work space. sym: the symbols, tab: bits << 12 | base.
    n = int(st[30])
    log = int(st[31])
    o = int(st[32])
    size = 1 << log
    hi = size - 1
    s = 0
    while s < n:
        c = int(norm[s])
        if c == 32767:
            sym[o + hi] = s
            hi -= 1
            norm[64 + s] = 1
        else:
            norm[64 + s] = c
        s += 1
    step = (size >> 1) + (size >> 3) + 3
    mask = size - 1
    pos = 0
    s = 0
    while s < n:
        c = int(norm[s])
        if c == 32767:
            c = 0
        while c > 0:
            sym[o + pos] = s
            pos = (pos + step) & mask
            while pos > hi:
                pos = (pos + step) & mask
            c -= 1
        s += 1
    i = 0
    while i < size:
        s = int(sym[o + i])
        x = int(norm[64 + s])
        norm[64 + s] = x + 1
        nb = log
        y = x
        while y > 1:
            y >>= 1
            nb -= 1
        tab[o + i] = (nb << 12) | ((x << nb) - size)
        i += 1
    return pos


@micropython.viper
def huf_fill(st: ptr32, w: ptr8, tab: ptr16) -> int:
    # st[30] symbols, st[31] table bits: by weight, then by symbol. The weights fill the table exactly: the caller has checked.
    n = int(st[30])
    mb = int(st[31])
    pos = 1280
    k = 1
    while k <= mb:
        s = 0
        while s < n:
            if int(w[s]) == k:
                c = 1 << (k - 1)
                v = (s << 8) | (mb + 1 - k)
                while c > 0:
                    tab[pos] = v
                    pos += 1
                    c -= 1
            s += 1
        k += 1
    return pos
