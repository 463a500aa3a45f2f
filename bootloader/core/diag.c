/* What a reset left behind, and the record of it in the diagnostics ring: ../FORMAT.md, "Diagnostics". */
#include "dfu.h"

/* The exception frame that ESP-IDF's panic handler leaves on the stack: facts of its layout, RvExcFrame. 0: none. */
static uint32_t frame_at(const struct dfu_crash *c) {
    for (uint32_t i = 0; i + 37 < c->sram_words; i += 4) {
        const uint32_t *f = c->sram + i;
        if (f[2] == c->sram_address + 4 * i + 160 && (f[33] & 3) == 1 && f[33] >> 20 == 0x403 && f[36] == 0)
            return i + 1;
    }
    return 0;
}

void dfu_diag_append(struct dfu_boot *b, uint8_t type, uint8_t slot, uint32_t cause, const struct dfu_crash *crash) {
    struct dfu_diag d;
    memset(&d, 0, sizeof d);
    d.seq = DFU_ANY_SEQ;
    d.type = type;
    d.slot = slot;
    d.crashes = b->state.crashes;
    d.cause = cause;
    dfu_trailer_read(b, slot, &b->image.envelope);
    if (b->image.envelope.length && !dfu_envelope_read(&b->image.envelope)) {
        const struct dfu_manifest *m = &b->image.envelope.manifest;
        d.sequence = m->sequence;
        memcpy(d.version, m->version, m->version_length < 32 ? m->version_length : 32);
    }
    if (crash) {
        uint32_t at = crash->sram ? frame_at(crash) : 0;
        d.reset = (uint8_t)crash->reason;
        if (at) {
            uint32_t *f = crash->sram + at - 1;
            memcpy(d.frame, f, 32 * 4);
            d.frame[32] = f[34];
            d.frame[33] = f[35];
            for (uint32_t i = 0; i < 32 && at + 39 + i < crash->sram_words; i++)
                d.stack[i] = f[40 + i]; /* sp points behind the frame's 160 bytes */
            f[2] = 0;
        }
    }
    if (dfu_log_append(b, &dfu_diag_log, &d))
        dfu_say(b, "diagnostics cannot be written", -1);
}

static bool in_set(uint32_t value, uint32_t set) {
    return value < 32 && set >> value & 1;
}

/* Watchdogs, and software resets with a mark of the panic handler (STORE6) or of the agent (STORE0). */
bool dfu_is_crash(const struct dfu_crash *c, uint32_t *cause) {
    const uint32_t watchdogs = 1u << 7 | 1u << 8 | 1u << 9 | 1u << 0xb | 1u << 0xd | 1u << 0x10 | 1u << 0x12;
    *cause = 0;
    if (in_set(c->reason, watchdogs))
        return true;
    if (!in_set(c->reason, 1u << 3 | 1u << 0xc))
        return false;
    *cause = c->store0;
    if (c->store0 >> 16 == 0xdf0c)
        return true;
    *cause = c->store6;
    return c->store6 == 0x80040004 || c->store6 == 0x80050005 || c->store6 == 0x80060006;
}
