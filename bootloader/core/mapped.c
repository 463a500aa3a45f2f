/* Mapped deltas: ../../docs/delta-format.md. The old image's view is made page by page as a frame asks for it, the new image's
 * absolute form is taken back page by page; both stand in flash, and so does the table of addresses. Bytes from outside: whatever
 * they are, nothing is read or written but what the arguments name. */
#include "dfu.h"

#define PREROLL 256u
#define VERSION 1 /* of the table */
#define LOOK_AHEAD 24
#define PIECE 256u
#define BLOCK_BITS 19
#define CALLER_SAVED 0xf003fce0u
#define CALL 32u
#define SP 2u
enum { JAL = 0x6f, JALR = 0x67, AUIPC = 0x17, LUI = 0x37, LOAD = 0x03, STORE = 0x23, ADDI = 0x13, BRANCH = 0x63, FENCE = 0x0f };
enum mode { VIEW, FORM, BACK };

static uint32_t get(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put(uint8_t *p, uint32_t word, uint32_t length) {
    for (uint32_t i = 0; i < length; i++, word >>= 8)
        p[i] = (uint8_t)word;
}

/* Where an offset's bits stand in an instruction, from the lowest on: RUN(n bits, from bit a of the instruction, to bit b of the
 * offset). The last run ends with the sign. */
#define RUN(n, a, b) ((n) | (a) << 5 | (b) << 10)
static const uint16_t jump[] = {RUN(10, 21, 1), RUN(1, 20, 11), RUN(8, 12, 12), RUN(1, 31, 20), 0};
static const uint16_t branch[] = {RUN(4, 8, 1), RUN(6, 25, 5), RUN(1, 7, 11), RUN(1, 31, 12), 0};
static const uint16_t short_jump[] = {RUN(3, 3, 1), RUN(1, 11, 4), RUN(1, 2, 5), RUN(1, 7, 6), RUN(1, 6, 7), RUN(2, 9, 8),
                                      RUN(1, 8, 10), RUN(1, 12, 11), 0};
static const uint16_t short_branch[] = {RUN(2, 3, 1), RUN(2, 10, 3), RUN(1, 2, 5), RUN(2, 5, 6), RUN(1, 12, 8), 0};

static uint32_t offset_in(uint32_t word, const uint16_t *run) {
    uint32_t offset = 0, top = 0;
    for (; *run; run++) {
        top = 1u << (*run & 31) << (*run >> 10);
        offset |= (word >> (*run >> 5 & 31) & ((1u << (*run & 31)) - 1)) << (*run >> 10);
    }
    return offset & top >> 1 ? offset - top : offset;
}

static uint32_t with_offset(uint32_t word, const uint16_t *run, uint32_t offset) {
    for (; *run; run++) {
        uint32_t mask = (1u << (*run & 31)) - 1, at = *run >> 5 & 31;
        word = (word & ~(mask << at)) | (offset >> (*run >> 10) & mask) << at;
    }
    return word;
}

/* Where a branch has its offset, or a short jump; NULL for any other instruction. */
static const uint16_t *branches(uint32_t w) {
    uint32_t f = w >> 13 & 7;
    if ((w & 3) == 1 && (f & 3) == 1)
        return short_jump;
    if ((w & 3) == 1 && f > 5)
        return short_branch;
    return (w & 0x7f) == BRANCH ? branch : NULL;
}

static uint32_t high(uint32_t x) {
    return (x + 0x800) & 0xfffff000;
}

static bool known(const struct dfu_mapped *m, uint32_t address) {
    for (uint32_t i = 0; i < m->ranges; i++)
        if (address - m->range[i][0] < m->range[i][1])
            return true;
    return false;
}

/* T: where an old address went. */
static uint32_t moved(struct dfu_mapped *m, uint32_t address) {
    uint32_t low = 0, end = (m->entries + DFU_TABLE_BLOCK - 1) / DFU_TABLE_BLOCK, n;
    if (!known(m, address) || !end || address < m->index[0])
        return address;
    while (end - low > 1) {
        uint32_t middle = (low + end) / 2;
        if (m->index[middle] <= address)
            low = middle;
        else
            end = middle;
    }
    n = m->entries - low * DFU_TABLE_BLOCK;
    if (n > DFU_TABLE_BLOCK)
        n = DFU_TABLE_BLOCK;
    if (m->block != low) {
        m->block = low;
        m->failed |= m->hw->read(m->hw->ctx, DFU_TABLE_AT + low * sizeof m->entry, m->entry, n * 8);
    }
    while (--n && m->entry[n][0] > address)
        ;
    return address + m->entry[n][1];
}

/* The base register of an instruction that adds a constant to it, 0 for any other, and the constant. */
static uint32_t use(uint32_t word, uint32_t *offset) {
    uint32_t operation = word & 0x7f;
    *offset = (uint32_t)((int32_t)word >> 20);
    if (operation == STORE)
        *offset = (*offset & ~31u) | (word >> 7 & 31);
    else if (operation != LOAD && ((operation != ADDI && operation != JALR) || word >> 12 & 7))
        return 0;
    return word >> 15 & 31;
}

static uint32_t use_with(uint32_t word, uint32_t offset) {
    return (word & 0x7f) == STORE ? (word & 0x1fff07f) | (offset & 0xfe0) << 20 | (offset & 31) << 7 : (word & 0xfffff) | offset << 20;
}

/* The register that an instruction writes, or 0; and CALL if it calls. */
static uint32_t written(uint32_t w) {
    uint32_t operation = w & 0x7f, rd = w >> 7 & 31, f = w >> 13 & 7;
    bool jumps = f == 4 && !(w & 0x7c), kept = !(CALLER_SAVED >> rd & 1);
    switch (w & 3) {
    case 0:
        return f != 1 && f < 4 ? 8 + (w >> 2 & 7) : 0;
    case 1:
        return f == 1 ? 1 | CALL : f == 4 ? 8 + (rd & 7) : f < 4 ? rd : 0;
    case 2:
        return jumps ? (w & 0x1000 ? 1 | CALL : 0) : f == 0 || (f == 2 && !kept) || f == 4 ? rd : 0;
    default:
        if (operation == BRANCH || operation == STORE || operation == FENCE || (operation == LOAD && kept && (w >> 15 & 31) == SP))
            return 0;
        return rd && (operation == JAL || operation == JALR) ? rd | CALL : rd;
    }
}

static uint32_t overwritten(uint32_t w) {
    uint32_t r = written(w);
    return 1u << (r & 31) | (r & CALL ? CALLER_SAVED : 0);
}

/* The offset with which `rd` is used first behind p, of which `left` bytes belong to the segment; or 0. */
static uint32_t look_ahead(const uint8_t *p, uint32_t left, uint32_t rd) {
    for (int i = 0; i < LOOK_AHEAD && left >= 4; i++) {
        uint32_t w = get(p), offset, n = (w & 3) == 3 ? 4 : 2;
        if (n == 4 && use(w, &offset) == rd)
            return offset;
        if (overwritten(w) >> rd & 1)
            break;
        p += n;
        left -= n;
    }
    return 0;
}

/* Rewrite instructions of segment s that begin from `at` on and below b; e: where the last must end. p holds the file from `first`
 * to `limit`, which may lie before e but for VIEW. Returns where it stopped. */
static uint32_t walk(struct dfu_mapped *m, const struct dfu_part *s, uint8_t *page, uint32_t first, uint32_t at, uint32_t b, uint32_t e,
                     uint32_t limit, enum mode mode) {
    uint32_t live = 0, was[32], now[32];
    while (at < b && at + 2 <= e && (limit >= e || at + 8 <= limit)) {
        uint8_t *p = page + (at - first);
        uint32_t w = p[0] | (uint32_t)p[1] << 8, n = (w & 3) == 3 ? 4 : 2, rd, x, o, next, base;
        uint32_t pc = mode == BACK ? s->offset - at - s->address : s->address + at - s->offset;
        const uint16_t *run;
        if (at + n > e)
            break;
        if (n == 4)
            w = get(p);
        rd = w >> 7 & 31;
        if (mode == VIEW && (run = branches(w))) {
            put(p, with_offset(w, run, moved(m, pc + offset_in(w, run)) - moved(m, pc)), n);
        } else if (mode == VIEW && n == 4 && (base = use(w, &o)) && live >> base & 1) {
            x = was[base] + o;
            if (known(m, x)) {
                x = moved(m, x) - now[base];
                if (x + 2048 < 4096)
                    put(p, use_with(w, x), 4);
            }
        }
        live &= ~overwritten(w);
        switch (w & 0x7f) {
        case JAL:
            if (mode == BACK) {
                put(p, with_offset(w, jump, (w >> 12 << 1) + pc), 4);
                break;
            }
            x = offset_in(w, jump) + pc;
            if (mode == VIEW)
                x = moved(m, x);
            put(p, (w & 0xfff) | (x << 11 & 0xfffff000), 4);
            break;
        case AUIPC:
            if (!rd || at + 8 > e)
                break;
            next = get(p + 4);
            if (use(next, &o) != rd)
                break;
            x = (w & 0xfffff000) + o + pc;
            if (mode == VIEW)
                x = moved(m, x);
            put(p, (w & 0xfff) | high(x), 4);
            put(p + 4, use_with(next, x), 4);
            live &= ~overwritten(next);
            at += 4;
            break;
        case LUI:
            if (mode != VIEW || !rd)
                break;
            base = w & 0xfffff000;
            x = base + look_ahead(p + 4, e - at - 4, rd);
            if (known(m, x)) {
                was[rd] = base;
                now[rd] = high(moved(m, x));
                put(p, (w & 0xfff) | now[rd], 4);
                live |= 1u << rd;
            }
        }
        at += n;
    }
    return at;
}

static bool part_of(const struct dfu_part *s, uint32_t first, uint32_t end, uint32_t *a, uint32_t *b) {
    *a = s->offset > first ? s->offset : first;
    *b = s->offset + s->length < end ? s->offset + s->length : end;
    return *a < *b;
}

static int view_make(struct dfu_mapped *m, uint32_t page, uint32_t end) {
    uint32_t first = page * DFU_VIEW_PAGE, a, b, stop = end + 98, at;
    uint32_t low = first < DFU_VIEW_BEFORE ? 0 : first - DFU_VIEW_BEFORE;
    if (stop > m->old_length)
        stop = m->old_length;
    m->cached = DFU_NOT_CACHED;
    if (m->hw->read(m->hw->ctx, m->old_at + low, m->cache, stop - low))
        return DFU_E_FLASH;
    m->failed = 0;
    for (uint32_t i = 0; i < m->olds; i++) {
        const struct dfu_part *s = &m->old[i];
        uint32_t e = s->offset + s->length;
        if (!part_of(s, first, end, &a, &b))
            continue;
        at = a - s->offset;
        if (m->flags >> (i + 1) & 1) {
            at = at < PREROLL ? 0 : (at - PREROLL) & ~1u;
            walk(m, s, m->cache, low, s->offset + at, b, e, e, VIEW);
        } else {
            for (at = s->offset + (at & ~3u); at < b && at + 4 <= e; at += 4) {
                uint8_t *p = m->cache + (at - low);
                put(p, moved(m, get(p)), 4);
            }
        }
    }
    if (m->failed)
        return DFU_E_FLASH;
    m->cached = page;
    m->made = end;
    return DFU_OK;
}

/* Bytes of the old image's view. */
int dfu_mapped_view(struct dfu_mapped *m, uint32_t position, uint8_t *buffer, uint32_t length) {
    while (length) {
        uint32_t page = position / DFU_VIEW_PAGE, n = DFU_VIEW_PAGE - position % DFU_VIEW_PAGE, low = page ? page * DFU_VIEW_PAGE - DFU_VIEW_BEFORE : 0;
        uint32_t end = position + n;
        if (n > length)
            n = length;
        /* what is asked for first is mostly all that is needed of a page, or all of it */
        if ((m->cached != page || position + n > m->made) && view_make(m, page, m->cached == page ? end : position + n))
            return DFU_E_FLASH;
        memcpy(buffer, m->cache + (position - low), n);
        position += n;
        buffer += n;
        length -= n;
    }
    return DFU_OK;
}

static uint32_t carry(const struct dfu_mapped *m, const struct dfu_part *s, uint32_t a) {
    uint32_t page = a / DFU_SECTOR;
    return a % DFU_SECTOR == 0 && a > s->offset && m->carries[page >> 5] >> (page & 31) & 1 ? 2 : 0;
}

/* Bytes of the absolute form of what this chunk has written, or of what was before it, where every piece stands by itself. */
int dfu_mapped_form(struct dfu_mapped *m, uint32_t position, uint8_t *buffer, uint32_t length) {
    if (m->hw->read(m->hw->ctx, m->new_at + position, buffer, length))
        return DFU_E_FLASH;
    for (uint32_t low = position, end; low < position + length; low = end) {
        uint32_t unit = low < m->first ? PIECE : DFU_SECTOR;
        low &= ~(unit - 1);
        end = low + unit;
        for (uint32_t i = 0; i < m->news; i++) {
            const struct dfu_part *s = &m->new[i];
            uint32_t a, b, at, stop, first;
            uint8_t window[64];
            if (!part_of(s, low, end, &a, &b))
                continue;
            for (at = a + carry(m, s, a); at < b && at < position + length; ) {
                first = at;
                stop = b - at < sizeof window ? b : at + (uint32_t)sizeof window;
                if (m->hw->read(m->hw->ctx, m->new_at + at, window, stop - at))
                    return DFU_E_FLASH;
                at = walk(m, s, window, at, at, b, b, stop, FORM);
                if (stop == b)
                    at = b;
                for (uint32_t x = first > position ? first : position; x < at && x < position + length; x++)
                    buffer[x - position] = window[x - first];
            }
        }
    }
    return DFU_OK;
}

/* Take the absolute form of a page back. length: of the page, which is the image's last if it is shorter than a sector. */
void dfu_mapped_back(struct dfu_mapped *m, uint32_t page, uint8_t *data, uint32_t length) {
    uint32_t first = page * DFU_SECTOR, a, b, at;
    for (uint32_t i = 0; i < m->news; i++) {
        const struct dfu_part *s = &m->new[i];
        if (!part_of(s, first, first + length, &a, &b))
            continue;
        at = walk(m, s, data, first, a + carry(m, s, a), b, b, b, BACK);
        if (at < b && b == first + DFU_SECTOR)
            m->carries[(page + 1) >> 5] |= 1u << ((page + 1) & 31);
    }
}

struct table {
    const uint8_t *p, *end;
    bool bad;
};

static uint32_t number(struct table *t) {
    uint32_t value = 0;
    for (uint32_t shift = 0; shift < 35; shift += 7) {
        uint32_t byte;
        if (t->p == t->end || (shift == 28 && *t->p > 15))
            break;
        byte = *t->p++;
        value |= (byte & 127) << shift;
        if (byte < 128)
            return value;
    }
    t->bad = true;
    return 0;
}

static uint32_t difference(struct table *t) {
    uint32_t value = number(t);
    return value >> 1 ^ (0u - (value & 1));
}

/* The old image's segments; the first that does not fit ends the list. */
static int parts(struct dfu_mapped *m) {
    uint32_t at = 24, pair[2];
    uint8_t head[2];
    m->olds = m->ranges = 0;
    if (m->old_length < 24)
        return DFU_OK;
    if (m->hw->read(m->hw->ctx, m->old_at, head, 2))
        return DFU_E_FLASH;
    if (head[0] != 0xe9 || head[1] > DFU_PARTS_MAX)
        return DFU_OK;
    while (m->olds < head[1] && at + 8 <= m->old_length) {
        struct dfu_part *s = &m->old[m->olds];
        if (m->hw->read(m->hw->ctx, m->old_at + at, pair, 8))
            return DFU_E_FLASH;
        at += 8;
        if (pair[1] > m->old_length - at)
            break;
        s->address = pair[0];
        s->offset = at;
        s->length = pair[1];
        m->olds++;
        at += pair[1];
        if (s->address && s->length) {
            uint32_t *r = m->range[m->ranges++];
            r[0] = s->address >> BLOCK_BITS << BLOCK_BITS;
            r[1] = (((s->address - r[0] + s->length - 1) >> BLOCK_BITS) + 1) << BLOCK_BITS;
        }
    }
    return DFU_OK;
}

/* Read the decoded table of an image of `size` bytes and lay its entries down in flash, where they are left alone if they stand
 * there already. m: hw, old_at, old_length and new_at are set. After an error m is of no use. */
int dfu_mapped_table(struct dfu_mapped *m, const uint8_t *data, uint32_t length, uint32_t size) {
    const struct dfu_hw *hw = m->hw;
    struct table t = {data + 1, data + length, false}, starts, shifts;
    bool write = false;
    uint32_t end = 0, start = 0, shift = 0, n = 0, i;
    m->block = m->cached = DFU_NOT_CACHED;
    m->entries = 0;
    if (parts(m))
        return DFU_E_FLASH;
    if (!length || data[0] != VERSION)
        return DFU_E_CHUNK;
    m->flags = number(&t);
    m->news = number(&t);
    if (m->flags >> 17 || m->news > DFU_PARTS_MAX)
        return DFU_E_CHUNK;
    for (i = 0; i < m->news; i++) {
        struct dfu_part *s = &m->new[i], like = {0, 0, 0};
        while (n < m->olds && !(m->flags >> (n + 1) & 1))
            n++;
        if (n < m->olds)
            like = m->old[n++];
        s->offset = like.offset + difference(&t);
        s->length = like.length + difference(&t);
        s->address = like.address + difference(&t);
        if (t.bad || s->offset < end || s->length > size || s->offset > size - s->length || (s->offset | s->address) & 1)
            return DFU_E_CHUNK;
        end = s->offset + s->length;
    }
    m->entries = number(&t);
    if (m->entries > DFU_ENTRIES_MAX)
        return DFU_E_CHUNK;
    starts = t;
again:
    t = shifts = starts;
    for (i = 0; i < m->entries; i++)
        number(&shifts);
    for (i = start = shift = 0; i < m->entries; i++) {
        uint32_t gap = number(&t), at = i % DFU_TABLE_BLOCK, to = DFU_TABLE_AT + 8 * (i - at), there[DFU_TABLE_BLOCK][2];
        if ((i && !gap) || start + gap < start)
            t.bad = true;
        m->entry[at][0] = start += gap;
        m->entry[at][1] = shift += difference(&shifts);
        if (!at)
            m->index[i / DFU_TABLE_BLOCK] = start;
        if (t.bad || shifts.bad)
            return DFU_E_CHUNK;
        if (at < DFU_TABLE_BLOCK - 1 && i < m->entries - 1)
            continue;
        at = 8 * (at + 1);
        if (write) {
            if ((to % DFU_SECTOR == 0 && hw->erase(hw->ctx, to)) || hw->program(hw->ctx, to, m->entry, at))
                return DFU_E_FLASH;
        } else if (hw->read(hw->ctx, to, there, at)) {
            return DFU_E_FLASH;
        } else if (memcmp(there, m->entry, at)) {
            write = true;
            goto again;
        }
    }
    return t.bad || shifts.bad || shifts.p != t.end ? DFU_E_CHUNK : DFU_OK;
}
