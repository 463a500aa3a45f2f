/* One magicless zstd frame (RFC 8878) with the flash as its window: RAM holds one page and the tables. Bytes from outside;
 * every read is bounded by the frame, every write by the size that the caller states. */
#include "entropy.h"

#define TRY(x)                                                                                                                  \
    do {                                                                                                                        \
        int error_ = (x);                                                                                                       \
        if (error_)                                                                                                             \
            return error_;                                                                                                      \
    } while (0)

enum { LITERALS, OFFSETS, MATCHES };
static const uint16_t AT[3] = {0, 512, 768};
static const uint8_t LOG_MAX[3] = {9, 8, 9}, LOG_DEFAULT[3] = {6, 5, 6}, SYMBOL_MAX[3] = {35, 31, 52};
static const uint8_t LITERAL_BITS[20] = {1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}; /* from 16 */
static const uint8_t MATCH_BITS[21] = {1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}; /* from 32 */
/* RFC 8878, 3.1.1.3.2.2 */
static const int8_t DEFAULT_L[36] = {4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2,
                                     2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1};
static const int8_t DEFAULT_O[29] = {1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1};
static const int8_t DEFAULT_M[53] = {1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                     1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1};

struct literals {
    const uint8_t *p; /* raw or the one byte */
    uint32_t left;    /* in the whole section */
    uint8_t type, stream, streams;
    struct dfu_bits stream_bits[4];
    uint32_t count[4];
};

struct run {
    struct dfu_zstd *z;
    const struct dfu_window *w;
    uint32_t position; /* of the page's first byte, from the start of the prefix */
    uint32_t fill, left;
    struct literals l;
};

static int flush(struct run *r) {
    if (r->fill)
        TRY(r->w->page(r->w->ctx, r->z->page, r->fill));
    r->position += r->fill;
    r->fill = 0;
    return DFU_OK;
}

static int huffman_copy(struct run *r, uint8_t *out, uint32_t n) {
    struct literals *l = &r->l;
    const struct dfu_zstd *z = r->z;
    uint32_t bits = z->huffman_bits, mask = (1u << bits) - 1;
    while (n) {
        struct dfu_bits *b;
        uint32_t count;
        while (!l->count[l->stream]) {
            if (l->stream_bits[l->stream].bit || ++l->stream >= l->streams)
                return DFU_E_ZSTD;
        }
        b = &l->stream_bits[l->stream];
        count = l->count[l->stream] < n ? l->count[l->stream] : n;
        l->count[l->stream] -= count;
        n -= count;
        while (count--) {
            uint32_t value, weight = bits;
            int32_t before = b->bit;
            if (before >= 24) { /* the three bytes that end where the next bit stands: the quick way */
                uint32_t first = (((uint32_t)before - 1) >> 3) - 2;
                const uint8_t *p = b->p + first;
                value = (p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16) >> ((uint32_t)before - bits - 8 * first) & mask;
            } else {
                value = dfu_bits_take(b, bits);
            }
            while (value < z->huffman[weight])
                weight--;
            b->bit = before - (int32_t)(bits + 1 - weight);
            if (b->bit < 0)
                return DFU_E_ZSTD;
            *out++ = z->symbol[z->first[weight - 1] + ((value - z->huffman[weight]) >> (weight - 1))];
        }
    }
    return DFU_OK;
}

/* n literals to the output. */
static int put_literals(struct run *r, uint32_t n) {
    struct literals *l = &r->l;
    if (n > l->left || n > r->left)
        return DFU_E_ZSTD;
    l->left -= n;
    r->left -= n;
    while (n) {
        uint32_t m = DFU_SECTOR - r->fill < n ? DFU_SECTOR - r->fill : n;
        uint8_t *out = r->z->page + r->fill;
        if (l->type == 0) {
            memcpy(out, l->p, m);
            l->p += m;
        } else if (l->type == 1) {
            memset(out, *l->p, m);
        } else {
            TRY(huffman_copy(r, out, m));
        }
        r->fill += m;
        n -= m;
        if (r->fill == DFU_SECTOR)
            TRY(flush(r));
    }
    return DFU_OK;
}

/* n bytes from `offset` back. */
static int put_match(struct run *r, uint32_t offset, uint32_t n) {
    if (n > r->left || !offset || offset > r->position + r->fill)
        return DFU_E_ZSTD;
    r->left -= n;
    while (n) {
        uint32_t m = DFU_SECTOR - r->fill < n ? DFU_SECTOR - r->fill : n;
        uint8_t *out = r->z->page + r->fill;
        if (offset > r->fill) { /* before the page: from flash */
            uint32_t back = offset - r->fill;
            if (m > back)
                m = back;
            if (r->w->read(r->w->ctx, r->position - back, out, m))
                return DFU_E_FLASH;
        } else {
            for (uint32_t i = 0; i < m; i++)
                out[i] = out[(int32_t)(i - offset)];
        }
        r->fill += m;
        n -= m;
        if (r->fill == DFU_SECTOR)
            TRY(flush(r));
    }
    return DFU_OK;
}

/* The literals section of a block; the bytes used, or 0. */
static uint32_t literals_start(struct run *r, const uint8_t *p, uint32_t n) {
    struct literals *l = &r->l;
    uint32_t format = p[0] >> 2 & 3, head, size, packed, used;
    memset(l, 0, sizeof *l);
    l->type = p[0] & 3;
    if (l->type < 2) {
        head = !(format & 1) ? 1 : format == 1 ? 2 : 3;
        if (n < head)
            return 0;
        l->left = head == 1 ? p[0] >> 3 : (p[0] | (uint32_t)p[1] << 8 | (head == 3 ? (uint32_t)p[2] << 16 : 0)) >> 4;
        l->p = p + head;
        used = head + (l->type ? 1 : l->left);
        return used > n || used < head ? 0 : used;
    }
    head = format < 2 ? 3 : format + 2;
    if (n < head)
        return 0;
    size = format < 2 ? 10 : format == 2 ? 14 : 18;
    packed = p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (head > 3 ? (uint32_t)p[3] << 24 : 0);
    l->left = packed >> 4 & ((1u << size) - 1);
    packed = size == 10 ? packed >> 14 : size == 14 ? packed >> 18 : packed >> 22 | (uint32_t)p[4] << 10;
    if (packed > n - head || !l->left)
        return 0;
    used = head + packed;
    p += head;
    if (l->type == 2) {
        uint32_t tree = dfu_huffman_read(r->z, p, packed);
        if (!tree)
            return 0;
        p += tree;
        packed -= tree;
    } else if (!r->z->huffman_bits) {
        return 0;
    }
    l->streams = format ? 4 : 1;
    if (format == 0) {
        l->count[0] = l->left;
        return dfu_bits_start(&l->stream_bits[0], p, packed) ? used : 0;
    }
    uint32_t each = (l->left + 3) / 4, total = 6;
    if (packed < 6 || 3 * each > l->left)
        return 0;
    const uint8_t *jump = p;
    p += 6;
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t length = i < 3 ? jump[2 * i] | (uint32_t)jump[2 * i + 1] << 8 : packed - total;
        total += length;
        if (total > packed || !dfu_bits_start(&l->stream_bits[i], p, length))
            return 0;
        p += length;
        l->count[i] = i < 3 ? each : l->left - 3 * each;
    }
    return used;
}

static int sequences(struct run *r, uint32_t count, struct dfu_bits *b) {
    struct dfu_zstd *z = r->z;
    uint32_t state[3];
    for (uint32_t k = 0; k < 3; k++)
        state[k] = dfu_bits_take(b, z->log[k]);
    while (count--) {
        uint32_t code[3], offset, match, literal, extra;
        for (uint32_t k = 0; k < 3; k++)
            code[k] = z->sequence[AT[k] + state[k]] & 63;
        offset = (1u << code[OFFSETS]) + dfu_bits_take(b, code[OFFSETS]);
        match = code[MATCHES] + 3;
        if (code[MATCHES] >= 32) {
            for (match = 35, extra = 32; extra < code[MATCHES]; extra++)
                match += 1u << MATCH_BITS[extra - 32];
            match += dfu_bits_take(b, MATCH_BITS[extra - 32]);
        }
        literal = code[LITERALS];
        if (literal >= 16) {
            for (literal = 16, extra = 16; extra < code[LITERALS]; extra++)
                literal += 1u << LITERAL_BITS[extra - 16];
            literal += dfu_bits_take(b, LITERAL_BITS[extra - 16]);
        }
        if (offset > 3) {
            offset -= 3;
            z->repeat[2] = z->repeat[1];
            z->repeat[1] = z->repeat[0];
        } else {
            uint32_t which = offset - 1 + (literal == 0);
            offset = which < 3 ? z->repeat[which] : z->repeat[0] - 1;
            if (which > 1)
                z->repeat[2] = z->repeat[1];
            if (which)
                z->repeat[1] = z->repeat[0];
        }
        z->repeat[0] = offset;
        TRY(put_literals(r, literal));
        TRY(put_match(r, offset, match));
        if (count) {
            dfu_fse_step(&state[LITERALS], z->sequence + AT[LITERALS], z->log[LITERALS], b);
            dfu_fse_step(&state[MATCHES], z->sequence + AT[MATCHES], z->log[MATCHES], b);
            dfu_fse_step(&state[OFFSETS], z->sequence + AT[OFFSETS], z->log[OFFSETS], b);
        }
        if (b->bit < 0)
            return DFU_E_ZSTD;
    }
    return b->bit ? DFU_E_ZSTD : DFU_OK;
}

static bool table_start(struct dfu_zstd *z, uint32_t k, uint32_t mode, const uint8_t **p, const uint8_t *end) {
    static const int8_t *const DEFAULT[3] = {DEFAULT_L, DEFAULT_O, DEFAULT_M};
    uint16_t *table = z->sequence + AT[k];
    uint32_t used;
    if (mode == 0) {
        int16_t norm[53];
        uint32_t symbols = k == OFFSETS ? 29 : SYMBOL_MAX[k] + 1u;
        for (uint32_t i = 0; i < symbols; i++)
            norm[i] = DEFAULT[k][i];
        z->log[k] = LOG_DEFAULT[k];
        dfu_fse_build(table, LOG_DEFAULT[k], norm, symbols);
    } else if (mode == 1) {
        if (*p == end || **p > SYMBOL_MAX[k])
            return false;
        table[0] = (uint16_t)(1 << 6 | *(*p)++);
        z->log[k] = 0;
    } else if (mode == 2) {
        z->have[k] = 0;
        if (!(used = dfu_fse_read(table, &z->log[k], *p, (uint32_t)(end - *p), LOG_MAX[k], SYMBOL_MAX[k])))
            return false;
        *p += used;
    } else if (!z->have[k]) {
        return false;
    }
    z->have[k] = 1;
    return true;
}

static int block(struct run *r, const uint8_t *p, const uint8_t *end) {
    uint32_t used = literals_start(r, p, (uint32_t)(end - p)), count;
    struct dfu_bits b;
    if (!used)
        return DFU_E_ZSTD;
    p += used;
    if (p == end)
        return DFU_E_ZSTD;
    count = *p++;
    if (count >= 128) {
        uint32_t more = count == 255 ? 2 : 1;
        if ((uint32_t)(end - p) < more)
            return DFU_E_ZSTD;
        count = more == 1 ? (count - 128) << 8 | p[0] : (p[0] | (uint32_t)p[1] << 8) + 0x7f00;
        p += more;
    }
    if (count) {
        uint32_t modes;
        if (p == end || *p & 3)
            return DFU_E_ZSTD;
        modes = *p++;
        for (uint32_t k = 0; k < 3; k++)
            if (!table_start(r->z, k, modes >> (6 - 2 * k) & 3, &p, end))
                return DFU_E_ZSTD;
        if (!dfu_bits_start(&b, p, (uint32_t)(end - p)))
            return DFU_E_ZSTD;
        TRY(sequences(r, count, &b));
    } else if (p != end) {
        return DFU_E_ZSTD;
    }
    return put_literals(r, r->l.left);
}

/* Decode one frame of `length` bytes to exactly `size`. DFU_E_ZSTD: it is wrong; else the window's error. */
int dfu_zstd_decode(struct dfu_zstd *z, const uint8_t *source, uint32_t length, uint32_t size, const struct dfu_window *w) {
    static const uint8_t SIZES[4] = {0, 2, 4, 8};
    const uint8_t *p = source, *end = source + length;
    struct run r;
    uint32_t descriptor, head, last;
    memset(&r, 0, sizeof r);
    r.z = z;
    r.w = w;
    r.position = w->prefix;
    r.left = size;
    z->repeat[0] = 1;
    z->repeat[1] = 4;
    z->repeat[2] = 8;
    z->huffman_bits = z->have[0] = z->have[1] = z->have[2] = 0;
    if (!length)
        return DFU_E_ZSTD;
    descriptor = *p++;
    if (descriptor & 0x0f) /* reserved, checksum, dictionary */
        return DFU_E_ZSTD;
    head = SIZES[descriptor >> 6] + (descriptor & 0x20 ? (descriptor >> 6 ? 0u : 1u) : 1u); /* content size, window */
    if ((uint32_t)(end - p) < head)
        return DFU_E_ZSTD;
    p += head;
    do {
        uint32_t h, n;
        if (end - p < 3)
            return DFU_E_ZSTD;
        h = p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16;
        p += 3;
        last = h & 1;
        n = h >> 3;
        h = h >> 1 & 3;
        if (n > 131072 || h == 3 || (uint32_t)(end - p) < (h == 1 ? 1 : n) || (h == 2 && n < 2))
            return DFU_E_ZSTD;
        if (h == 2) {
            TRY(block(&r, p, p + n));
            p += n;
        } else {
            r.l.type = (uint8_t)h;
            r.l.p = p;
            r.l.left = n;
            TRY(put_literals(&r, n));
            p += h ? 1 : n;
        }
    } while (!last);
    if (p != end || (r.left && !w->shorter))
        return DFU_E_ZSTD;
    return flush(&r);
}
