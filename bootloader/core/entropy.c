/* The entropy coding of zstd (RFC 8878, 4): bits read backwards, FSE state tables, the Huffman tree. Bytes from outside; every read is
 * bounded by the n that the caller states, or by where a stream begins. */
#include "entropy.h"

static uint32_t high_bit(uint32_t x) {
    uint32_t n = 0;
    if (x >> 16) n = 16, x >>= 16;
    if (x >> 8) n += 8, x >>= 8;
    if (x >> 4) n += 4, x >>= 4;
    if (x >> 2) n += 2, x >>= 2;
    return n + (x >> 1 & 1);
}

bool dfu_bits_start(struct dfu_bits *b, const uint8_t *p, uint32_t n) {
    if (!n || !p[n - 1])
        return false;
    b->p = p;
    b->bit = (int32_t)(8 * (n - 1) + high_bit(p[n - 1]));
    return true;
}

uint32_t dfu_bits_take(struct dfu_bits *b, uint32_t n) {
    uint32_t value = 0, missing = 0, at, shift;
    const uint8_t *p;
    b->bit -= (int32_t)n;
    if (b->bit < 0) {
        missing = (uint32_t)-b->bit;
        if (missing >= n)
            return 0;
        n -= missing;
    }
    if (!n)
        return 0;
    at = missing ? 0 : (uint32_t)b->bit;
    shift = at & 7;
    p = b->p + (at >> 3);
    for (uint32_t got = 0; got < shift + n && got < 32; got += 8)
        value |= (uint32_t)*p++ << got;
    value >>= shift;
    if (shift + n > 32)
        value |= (uint32_t)*p << (32 - shift);
    if (n < 32)
        value &= (1u << n) - 1;
    return value << missing;
}

bool dfu_fse_build(uint16_t *table, uint32_t log, const int16_t *norm, uint32_t symbols) {
    uint32_t size = 1u << log, high = size, step = (size >> 1) + (size >> 3) + 3, at = 0;
    uint16_t next[53];
    for (uint32_t s = 0; s < symbols; s++)
        if (norm[s] == -1) {
            table[--high] = (uint16_t)s;
            next[s] = 1;
        }
    for (uint32_t s = 0; s < symbols; s++)
        if (norm[s] > 0) {
            next[s] = (uint16_t)norm[s];
            for (int i = 0; i < norm[s]; i++) {
                table[at] = (uint16_t)s;
                do
                    at = (at + step) & (size - 1);
                while (at >= high);
            }
        }
    if (at)
        return false;
    for (uint32_t i = 0; i < size; i++) {
        uint32_t s = table[i];
        table[i] = (uint16_t)(next[s]++ << 6 | s);
    }
    return true;
}

static uint32_t forward(const uint8_t *p, uint32_t n, uint32_t bit, uint32_t count) {
    uint32_t value = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = bit + i;
        if (at >> 3 < n)
            value |= (uint32_t)(p[at >> 3] >> (at & 7) & 1) << i;
    }
    return value;
}

uint32_t dfu_fse_read(uint16_t *table, uint8_t *log, const uint8_t *p, uint32_t n, uint32_t log_max, uint32_t symbol_max) {
    int16_t norm[53];
    uint32_t bit = 4, symbols = 0;
    int32_t left;
    *log = (uint8_t)(forward(p, n, 0, 4) + 5);
    if (*log > log_max)
        return 0;
    left = 1 << *log;
    while (left > 0) {
        uint32_t width = high_bit((uint32_t)left + 1) + 1, value, low, limit;
        if (symbols > symbol_max)
            return 0;
        value = forward(p, n, bit, width);
        low = value & ((1u << (width - 1)) - 1);
        limit = (1u << width) - 2 - (uint32_t)left;
        if (low < limit) {
            value = low;
            bit += width - 1;
        } else {
            if (value >> (width - 1))
                value -= limit;
            bit += width;
        }
        norm[symbols] = (int16_t)((int32_t)value - 1);
        left -= norm[symbols] < 0 ? 1 : norm[symbols];
        if (norm[symbols++] == 0) {
            uint32_t zeros;
            do {
                zeros = forward(p, n, bit, 2);
                bit += 2;
                for (uint32_t i = 0; i < zeros; i++) {
                    if (symbols > symbol_max)
                        return 0;
                    norm[symbols++] = 0;
                }
            } while (zeros == 3);
        }
        if (bit > 8 * n)
            return 0;
    }
    return left || !dfu_fse_build(table, *log, norm, symbols) ? 0 : (bit + 7) >> 3;
}

void dfu_fse_step(uint32_t *state, const uint16_t *table, uint32_t log, struct dfu_bits *b) {
    uint32_t count = table[*state] >> 6, bits = log - high_bit(count);
    *state = (count << bits) - (1u << log) + dfu_bits_take(b, bits);
}

uint32_t dfu_huffman_read(struct dfu_zstd *z, const uint8_t *p, uint32_t n) {
    uint8_t weight[256];
    uint32_t count = 0, used, sum = 0, bits, last, at = 0;
    if (!n)
        return 0;
    if (p[0] >= 128) {
        count = p[0] - 127u;
        used = 1 + (count + 1) / 2;
        if (used > n)
            return 0;
        for (uint32_t i = 0; i < count; i++)
            weight[i] = i & 1 ? p[1 + i / 2] & 15 : p[1 + i / 2] >> 4;
    } else {
        uint16_t table[64];
        uint32_t head, state[2];
        uint8_t log;
        struct dfu_bits b;
        used = 1u + p[0];
        if (used > n || !(head = dfu_fse_read(table, &log, p + 1, p[0], 6, 12)) || !dfu_bits_start(&b, p + 1 + head, p[0] - head))
            return 0;
        state[0] = dfu_bits_take(&b, log);
        state[1] = dfu_bits_take(&b, log);
        if (b.bit < 0)
            return 0;
        for (uint32_t which = 0;; which ^= 1) {
            uint32_t entry = table[state[which]];
            if (count > 253)
                return 0;
            weight[count++] = (uint8_t)(entry & 63);
            if (b.bit < (int32_t)(log - high_bit(entry >> 6))) {
                weight[count++] = (uint8_t)(table[state[which ^ 1]] & 63);
                break;
            }
            dfu_fse_step(&state[which], table, log, &b);
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        if (weight[i] > 11)
            return 0;
        if (weight[i])
            sum += 1u << (weight[i] - 1);
    }
    if (!sum)
        return 0;
    bits = high_bit(sum) + 1;
    last = (1u << bits) - sum;
    if (bits > 11 || last & (last - 1))
        return 0;
    weight[count++] = (uint8_t)(high_bit(last) + 1);
    for (uint32_t w = 1, code = 0; w <= 12; w++) {
        z->huffman[w] = (uint16_t)code;
        z->first[w - 1] = (uint8_t)at;
        for (uint32_t i = 0; i < count; i++)
            if (weight[i] == w) {
                z->symbol[at++] = (uint8_t)i;
                code += 1u << (w - 1);
            }
    }
    z->huffman_bits = (uint8_t)bits;
    return used;
}
