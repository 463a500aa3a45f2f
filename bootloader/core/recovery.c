/* The recovery line: frames between c0 bytes (RFC 1055), each with a CRC-32 at its end. ../FORMAT.md, "Recovery". */
#include "dfu.h"

#define END 0xc0
#define ESCAPE 0xdb
enum { OP_INFO = 1, OP_DIAG, OP_BEGIN, OP_CHUNK, OP_FINISH, OP_BOOT };
#define ANSWER 0x80
#define SILENCES 60 /* a get without a byte is about a second */

struct answer {
    struct dfu_boot *b;
    uint32_t crc;
};

static void raw(struct dfu_boot *b, uint8_t byte) {
    if (byte == END || byte == ESCAPE) {
        b->hw->put(b->hw->ctx, ESCAPE);
        byte = byte == END ? 0xdc : 0xdd;
    }
    b->hw->put(b->hw->ctx, byte);
}

static void send(struct answer *a, const void *data, uint32_t n) {
    const uint8_t *p = data;
    a->crc = dfu_crc32(a->crc, p, n);
    while (n--)
        raw(a->b, *p++);
}

static void start(struct answer *a, struct dfu_boot *b, uint8_t op, int error) {
    uint8_t head[2] = {(uint8_t)(op | ANSWER), (uint8_t)error};
    a->b = b;
    a->crc = 0;
    b->hw->put(b->hw->ctx, END);
    send(a, head, 2);
}

static void end(struct answer *a) {
    uint32_t crc = a->crc;
    send(a, &crc, 4);
    a->b->hw->put(a->b->hw->ctx, END);
}

/* A frame into b->chunk; its length without the CRC, or -1: silence, -2: a wrong one. */
static int receive(struct dfu_boot *b) {
    uint32_t n = 0, crc;
    bool escaped = false, over = false;
    for (;;) {
        int byte = b->hw->get(b->hw->ctx);
        if (byte < 0)
            return -1;
        if (byte == END) {
            if (n == 0)
                continue;
            if (over || escaped || n < 5)
                return -2;
            memcpy(&crc, b->chunk + n - 4, 4);
            return crc == dfu_crc32(0, b->chunk, n - 4) ? (int)n - 4 : -2;
        }
        if (byte == ESCAPE && !escaped) {
            escaped = true;
            continue;
        }
        if (escaped)
            byte = byte == 0xdc ? END : byte == 0xdd ? ESCAPE : byte;
        escaped = false;
        if (n < DFU_CHUNK_MAX)
            b->chunk[n++] = (uint8_t)byte;
        else
            over = true;
    }
}

static void info(struct dfu_boot *b) {
    struct answer a;
    uint8_t head[4] = {1, b->reason, b->known ? b->state.slot : 0xff, (uint8_t)((b->open ? 1 : 0) | (b->locked ? 2 : 0))};
    uint32_t sizes[3] = {b->hw->flash_size, DFU_IMAGE_MAX, DFU_CHUNK_MAX};
    struct dfu_state none;
    start(&a, b, OP_INFO, DFU_OK);
    send(&a, head, 4);
    send(&a, sizes, sizeof sizes);
    memset(&none, 0xff, sizeof none);
    send(&a, b->known ? &b->state : &none, sizeof none);
    for (uint8_t slot = 0; slot < 2; slot++) {
        uint8_t version[64], status = (uint8_t)dfu_judge(b, slot, &b->image);
        const struct dfu_manifest *m = &b->image.envelope.manifest;
        memset(version, 0, sizeof version);
        if (b->image.envelope.length)
            memcpy(version, m->version, m->version_length);
        send(&a, &status, 1);
        send(&a, &b->image.sequence, 4);
        send(&a, b->image.sha256, 32);
        send(&a, version, sizeof version);
    }
    end(&a);
}

static int begin(struct dfu_boot *b, const uint8_t *p, uint32_t n) {
    struct dfu_envelope *e = &b->target.envelope;
    uint8_t base[32];
    if (n < 34 || p[0] > 1 || n - 34 > DFU_ENVELOPE_MAX)
        return DFU_E_FRAME;
    e->length = n - 34;
    memcpy(e->bytes, p + 34, e->length);
    memcpy(base, p + 2, 32);
    return dfu_install_begin(b, p[0], p[1], base);
}

static int finish(struct dfu_boot *b) {
    uint8_t slot = b->target.slot;
    int error = dfu_install_finish(b);
    if (error)
        return error;
    dfu_state_trial(&b->state, slot, dfu_judge(b, !slot, &b->image) == DFU_OK);
    return dfu_state_append(b);
}

void dfu_recover(struct dfu_boot *b, bool without_end) {
    uint32_t silences = 0;
    dfu_say(b, "recovery: waiting for dfuctl recover", -1);
    for (;;) {
        struct answer a;
        uint32_t used;
        int n = receive(b), error;
        b->hw->feed(b->hw->ctx);
        if (n == -1) {
            if (!without_end && ++silences == SILENCES)
                return;
            continue;
        }
        silences = 0;
        if (n < 0) {
            start(&a, b, 0, DFU_E_FRAME);
            end(&a);
            continue;
        }
        switch (b->chunk[0]) {
        case OP_INFO:
            info(b);
            continue;
        case OP_DIAG:
            if (n == 2 && b->chunk[1] < dfu_diag_log.sectors * (DFU_SECTOR / sizeof(struct dfu_diag))) {
                uint8_t record[sizeof(struct dfu_diag)];
                uint32_t at = DFU_DIAG_AT + b->chunk[1] * (uint32_t)sizeof record;
                error = b->hw->read(b->hw->ctx, at, record, sizeof record) ? DFU_E_FLASH : DFU_OK;
                start(&a, b, OP_DIAG, error);
                send(&a, record, error ? 0 : sizeof record);
                end(&a);
                continue;
            }
            error = DFU_E_FRAME;
            break;
        case OP_BEGIN:
            error = begin(b, b->chunk + 1, (uint32_t)n - 1);
            break;
        case OP_CHUNK:
            error = dfu_install_chunk(b, b->chunk + 1, (uint32_t)n - 1, &used);
            if (!error && used != (uint32_t)n - 1)
                error = DFU_E_CHUNK;
            break;
        case OP_FINISH:
            error = finish(b);
            break;
        case OP_BOOT:
            error = DFU_OK;
            break;
        default:
            error = DFU_E_FRAME;
        }
        start(&a, b, b->chunk[0], error);
        end(&a);
        if (b->chunk[0] == OP_BOOT)
            return;
    }
}
