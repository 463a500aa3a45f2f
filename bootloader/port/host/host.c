#include "host.h"
#include "wiring.h"
#include <stddef.h>
#include <stdlib.h>

static int flash_read(void *ctx, uint32_t offset, void *buffer, uint32_t length) {
    struct host *h = ctx;
    if (offset > h->flash_size || length > h->flash_size - offset)
        return 1;
    memcpy(buffer, h->flash + offset, length);
    return 0;
}

static bool allowed(const struct host *h, uint32_t offset) {
    bool slot = offset >= DFU_SLOT_AT(1) && offset < DFU_SLOT_AT(1) + DFU_SLOT_SIZE;
    return offset >= DFU_STATE_AT && (!h->slot_only || slot || (offset >= DFU_TABLE_AT && offset < DFU_TABLE_AT + DFU_TABLE_SIZE));
}

static int flash_program(void *ctx, uint32_t offset, const void *data, uint32_t length) {
    struct host *h = ctx;
    h->operations++;
    if (!allowed(h, offset) || (length && !allowed(h, offset + length - 1)) || (offset | length) & 3 || offset > h->flash_size || length > h->flash_size - offset) {
        h->outside++;
        return 1;
    }
    for (uint32_t i = 0; i < length; i++)
        h->flash[offset + i] &= ((const uint8_t *)data)[i];
    return 0;
}

static int flash_erase(void *ctx, uint32_t offset) {
    struct host *h = ctx;
    h->operations++;
    if (!allowed(h, offset) || offset % DFU_SECTOR || offset >= h->flash_size) {
        h->outside++;
        return 1;
    }
    memset(h->flash + offset, 0xff, DFU_SECTOR);
    return 0;
}

/* SHA-256, FIPS 180-4; on the chip the ROM does it. */
static uint32_t rotate(uint32_t x, uint32_t n) {
    return x >> n | x << (32 - n);
}

static void sha_block(struct host *h) {
    static const uint32_t K[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
        0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
        0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
        0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
        0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
        0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64], v[8];
    const uint8_t *p = h->sha.block;
    for (int i = 0; i < 16; i++, p += 4)
        w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
    memcpy(v, h->sha.h, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t t = v[7] + (rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25)) + ((v[4] & v[5]) ^ (~v[4] & v[6])) + K[i] + w[i];
        uint32_t u = (rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22)) + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t;
        v[0] = t + u;
    }
    for (int i = 0; i < 8; i++)
        h->sha.h[i] += v[i];
}

static void sha_start(void *ctx) {
    static const uint32_t START[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    struct host *h = ctx;
    memcpy(h->sha.h, START, sizeof START);
    h->sha.total = 0;
}

static void sha_update(void *ctx, const void *data, uint32_t length) {
    struct host *h = ctx;
    const uint8_t *p = data;
    while (length--) {
        h->sha.block[h->sha.total++ & 63] = *p++;
        if (!(h->sha.total & 63))
            sha_block(h);
    }
}

static void sha_finish(void *ctx, uint8_t digest[32]) {
    struct host *h = ctx;
    uint64_t bits = h->sha.total * 8;
    uint8_t byte = 0x80;
    do {
        sha_update(h, &byte, 1);
        byte = 0;
    } while ((h->sha.total & 63) != 56);
    for (int i = 56; i >= 0; i -= 8) {
        byte = (uint8_t)(bits >> i);
        sha_update(h, &byte, 1);
    }
    for (int i = 0; i < 32; i++)
        digest[i] = (uint8_t)(h->sha.h[i / 4] >> (24 - 8 * (i & 3)));
}

static void print(void *ctx, const char *text) {
    (void)ctx;
    (void)text;
}

static void feed(void *ctx) {
    (void)ctx;
}

static int get(void *ctx) {
    struct host *h = ctx;
    return h->input_at < h->input_length ? h->input[h->input_at++] : -1;
}

static void put(void *ctx, uint8_t byte) {
    struct host *h = ctx;
    if (h->output_length < h->output_max)
        h->output[h->output_length++] = byte;
}

/* h->flash, input and output are the caller's; the buffers are static here: this is a host. */
void host_start(struct host *h, struct dfu_hw *hw, struct dfu_boot *b) {
    static uint8_t sector[DFU_SECTOR], chunk[DFU_CHUNK_MAX];
    static struct dfu_zstd zstd;
    static struct dfu_mapped mapped;
    const struct dfu_hw functions = {.ctx = h, .flash_size = h->flash_size, DFU_PORT_FUNCTIONS};
    *hw = functions;
    memset(b, 0, sizeof *b);
    dfu_wire(b, hw, sector, chunk, &zstd, &mapped);
}

int host_boot(uint8_t *flash, uint32_t size, uint32_t reason, uint32_t store0, uint32_t store6, uint32_t *sram, uint32_t sram_words,
              uint32_t result[4]) {
    struct host h = {.flash = flash, .flash_size = size};
    struct dfu_crash crash = {
        .reason = reason, .store0 = store0, .store6 = store6, .sram = sram, .sram_address = 0x3fc80000, .sram_words = sram_words};
    struct dfu_hw hw;
    struct dfu_boot b;
    host_start(&h, &hw, &b);
    int booted = dfu_boot(&b, &crash);
    result[0] = b.image.slot;
    result[1] = b.image.entry;
    result[2] = h.operations;
    result[3] = h.outside;
    return booted;
}

int host_judge(uint8_t *flash, uint32_t size, uint8_t slot) {
    struct host h = {.flash = flash, .flash_size = size};
    struct dfu_hw hw;
    struct dfu_boot b;
    host_start(&h, &hw, &b);
    dfu_keys_load(&b);
    return dfu_judge(&b, slot, &b.image);
}

struct whole {
    const uint8_t *prefix;
    uint32_t prefix_length;
    uint8_t *out;
    uint32_t length, max;
};

static int whole_read(void *ctx, uint32_t position, uint8_t *buffer, uint32_t length) {
    struct whole *w = ctx;
    for (uint32_t i = 0; i < length; i++, position++) {
        if (position >= w->prefix_length + w->length)
            return 1;
        buffer[i] = position < w->prefix_length ? w->prefix[position] : w->out[position - w->prefix_length];
    }
    return 0;
}

static int whole_page(void *ctx, uint8_t *data, uint32_t length) {
    struct whole *w = ctx;
    if (length > w->max - w->length)
        abort(); /* the decoder promised not to */
    memcpy(w->out + w->length, data, length);
    w->length += length;
    return 0;
}

int host_zstd(const uint8_t *source, uint32_t length, const uint8_t *prefix, uint32_t prefix_length, uint8_t *out, uint32_t size) {
    static struct dfu_zstd zstd;
    struct whole whole = {prefix, prefix_length, out, 0, size};
    struct dfu_window w = {&whole, prefix_length, false, whole_read, whole_page};
    return dfu_zstd_decode(&zstd, source, length, size, &w);
}

static void slots(struct host *h, struct dfu_hw *hw, struct dfu_boot *b, uint8_t kind, uint32_t size, const uint8_t *base,
                  uint32_t base_length) {
    struct dfu_target *t = &b->target;
    h->slot_only = true;
    host_start(h, hw, b);
    memcpy(h->flash + DFU_SLOT_AT(0), base, base_length);
    t->active = true;
    t->slot = 1;
    t->kind = kind;
    t->base_length = kind == DFU_FULL ? 0 : base_length;
    t->envelope.manifest.size = size;
}

int host_chunks(uint8_t *flash, uint8_t kind, uint32_t size, const uint8_t *base, uint32_t base_length, const uint8_t *chunks, uint32_t length,
                uint32_t result[2]) {
    struct host h = {.flash = flash, .flash_size = DFU_FLASH_MIN};
    struct dfu_hw hw;
    struct dfu_boot b;
    int error = DFU_OK;
    slots(&h, &hw, &b, kind, size, base, base_length);
    for (uint32_t used; !error && length; chunks += used, length -= used) {
        uint32_t n = length < DFU_CHUNK_MAX ? length : DFU_CHUNK_MAX;
        memcpy(b.chunk, chunks, n);
        error = dfu_install_chunk(&b, b.chunk, n, &used);
    }
    result[0] = b.target.next;
    result[1] = h.outside;
    return error;
}

static int table_read(struct host *h, struct dfu_hw *hw, struct dfu_boot *b, const uint8_t *old, uint32_t old_length, const uint8_t *table,
                      uint32_t length, uint32_t size) {
    slots(h, hw, b, DFU_MAPPED, size, old, old_length);
    b->mapped->hw = hw;
    b->mapped->old_at = DFU_SLOT_AT(0);
    b->mapped->old_length = old_length;
    b->mapped->new_at = DFU_SLOT_AT(1);
    return dfu_mapped_table(b->mapped, table, length, size);
}

int host_view(uint8_t *flash, const uint8_t *old, uint32_t old_length, const uint8_t *table, uint32_t length, uint32_t size, uint8_t *out,
              uint32_t step) {
    struct host h = {.flash = flash, .flash_size = DFU_FLASH_MIN};
    struct dfu_hw hw;
    struct dfu_boot b;
    int error = table_read(&h, &hw, &b, old, old_length, table, length, size);
    for (uint32_t at = 0; !error && at < old_length; at += step)
        error = dfu_mapped_view(b.mapped, at, out + at, old_length - at < step ? old_length - at : step);
    return error;
}

int host_form(uint8_t *flash, const uint8_t *old, uint32_t old_length, const uint8_t *table, uint32_t length, uint8_t *image, uint32_t size,
              uint32_t page, uint8_t *form, uint32_t step) {
    struct host h = {.flash = flash, .flash_size = DFU_FLASH_MIN};
    struct dfu_hw hw;
    struct dfu_boot b;
    uint32_t first = page * DFU_SECTOR;
    int error = table_read(&h, &hw, &b, old, old_length, table, length, size);
    if (error)
        return error;
    memset(b.mapped->carries, 0, sizeof b.mapped->carries);
    b.mapped->first = first;
    for (uint32_t at = first; at < size; at += DFU_SECTOR)
        dfu_mapped_back(b.mapped, at / DFU_SECTOR, image + at, size - at < DFU_SECTOR ? size - at : DFU_SECTOR);
    memcpy(flash + DFU_SLOT_AT(1), image, size);
    for (uint32_t at = first; !error && at < size; at += step)
        error = dfu_mapped_form(b.mapped, at, form + at, size - at < step ? size - at : step);
    return error;
}

int host_verify(const uint8_t *key, const uint8_t *signature, const uint8_t *message, uint32_t length) {
    return dfu_ed25519_verify(key, signature, NULL, 0, message, length);
}

int host_envelope(const uint8_t *data, uint32_t length, uint32_t result[4]) {
    struct dfu_envelope *e = calloc(1, sizeof *e);
    int error = DFU_E_MANIFEST;
    if (e && length <= DFU_ENVELOPE_MAX) {
        e->length = length;
        memcpy(e->bytes, data, length);
        error = dfu_envelope_read(e);
        result[0] = e->manifest.sequence;
        result[1] = e->manifest.size;
        result[2] = e->manifest.adds;
        result[3] = e->manifest.revokes;
    }
    free(e);
    return error;
}

int host_chunk(const uint8_t *data, uint32_t length, uint32_t result[6]) {
    struct dfu_chunk c;
    memset(&c, 0, sizeof c);
    int error = dfu_chunk_parse(data, length, &c, &result[5]);
    result[0] = c.number;
    result[1] = c.page;
    result[2] = c.pages;
    result[3] = c.crc;
    result[4] = c.length;
    return error;
}

int host_recover(uint8_t *flash, uint32_t size, const uint8_t *input, uint32_t length, uint8_t *output, uint32_t output_max,
                 uint32_t result[2]) {
    struct host h = {.flash = flash, .flash_size = size, .input = input, .input_length = length, .output = output, .output_max = output_max};
    struct dfu_hw hw;
    struct dfu_boot b;
    host_start(&h, &hw, &b);
    dfu_keys_load(&b);
    dfu_state_load(&b);
    dfu_recover(&b, false);
    result[0] = h.output_length;
    result[1] = h.outside;
    return 0;
}

/* Sizes and offsets as the compiler has them, for the comparison with FORMAT.md. */
uint32_t host_sizes(uint32_t which) {
    static const uint32_t SIZES[] = {
        sizeof(struct dfu_state),          offsetof(struct dfu_state, slot),     offsetof(struct dfu_state, phase),
        offsetof(struct dfu_state, crashes), offsetof(struct dfu_state, max_crashes), offsetof(struct dfu_state, max_crashes) + 1,
        offsetof(struct dfu_state, outcome), offsetof(struct dfu_state, reset),  offsetof(struct dfu_state, writer),
        offsetof(struct dfu_state, floor), offsetof(struct dfu_state, accept),   offsetof(struct dfu_state, tried),
        offsetof(struct dfu_state, crc),   sizeof(struct dfu_keys),              offsetof(struct dfu_keys, count),
        offsetof(struct dfu_keys, development), offsetof(struct dfu_keys, revoked), offsetof(struct dfu_keys, key),
        offsetof(struct dfu_keys, revoked_id), offsetof(struct dfu_keys, crc),   sizeof(struct dfu_diag),
        offsetof(struct dfu_diag, type),   offsetof(struct dfu_diag, slot),      offsetof(struct dfu_diag, crashes),
        offsetof(struct dfu_diag, reset),  offsetof(struct dfu_diag, cause),     offsetof(struct dfu_diag, sequence),
        offsetof(struct dfu_diag, version), offsetof(struct dfu_diag, frame),    offsetof(struct dfu_diag, stack),
        offsetof(struct dfu_diag, text),   offsetof(struct dfu_diag, crc),       sizeof(struct dfu_zstd),
        sizeof(struct dfu_mapped)};
    return which < sizeof SIZES / sizeof *SIZES ? SIZES[which] : 0;
}
