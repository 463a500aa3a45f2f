/* What runs: current first, a crashed one again up to its maximum, then previous. */
#include "dfu.h"

static const uint8_t OUTCOME[DFU_E_KIND + 1] = {
    DFU_NONE,       DFU_LEFT_IMAGE, DFU_LEFT_IMAGE, DFU_LEFT_HASH,      DFU_LEFT_SIGNATURE, DFU_LEFT_SEQUENCE, DFU_LEFT_IMAGE,
    DFU_LEFT_IMAGE, DFU_LEFT_IMAGE, DFU_LEFT_IMAGE, DFU_LEFT_SIGNATURE, DFU_LEFT_IMAGE,     DFU_LEFT_IMAGE,    DFU_LEFT_IMAGE,
    DFU_LEFT_IMAGE, DFU_LEFT_IMAGE, DFU_LEFT_IMAGE, DFU_LEFT_IMAGE,     DFU_LEFT_IMAGE};

void dfu_say(struct dfu_boot *b, const char *what, int number) {
    char digits[12];
    int at = sizeof digits - 1;
    digits[at] = 0;
    b->hw->print(b->hw->ctx, "dfud boot: ");
    b->hw->print(b->hw->ctx, what);
    if (number >= 0) {
        do
            digits[--at] = (char)('0' + number % 10);
        while (number /= 10);
        b->hw->print(b->hw->ctx, digits + at);
    }
    b->hw->print(b->hw->ctx, "\n");
}

static const char *describe(int error) {
    switch (error) {
    case DFU_E_EMPTY: return "no image";
    case DFU_E_HASH: return "SHA-256 is wrong";
    case DFU_E_SIGNATURE: return "no trusted key signed it";
    case DFU_E_SEQUENCE: return "sequence is too low";
    case DFU_E_SEGMENTS: return "bad segment table";
    case DFU_E_CHIP: return "made for another chip";
    case DFU_E_FLASH_SIZE: return "made for a larger flash";
    case DFU_E_OVERLAP: return "a segment lies outside of the application's memory";
    case DFU_E_MANIFEST: return "bad manifest";
    case DFU_E_CHUNK: return "bad chunk";
    case DFU_E_ZSTD: return "a chunk does not decode";
    case DFU_E_BASE: return "starts from another image";
    case DFU_E_STAGE: return "nothing is staged";
    default: return "failed";
    }
}

static void say_error(struct dfu_boot *b, const char *what, int slot, int error) {
    dfu_say(b, what, slot);
    dfu_say(b, describe(error), -1);
}

int dfu_state_append(struct dfu_boot *b) {
    b->state.writer = 1;
    b->known = true;
    return dfu_log_append(b, &dfu_state_log, &b->state);
}

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

static uint32_t tried(struct dfu_boot *b, uint8_t slot) {
    uint32_t value = 0;
    dfu_trailer_read(b, slot, &b->image.envelope);
    if (b->image.envelope.length && !dfu_envelope_read(&b->image.envelope))
        memcpy(&value, b->image.envelope.manifest.sha256, 4);
    return value;
}

static void leave(struct dfu_boot *b, uint8_t outcome) {
    struct dfu_state *s = &b->state;
    s->tried = tried(b, s->slot);
    s->slot = !s->slot;
    s->phase = DFU_CONFIRMED;
    s->crashes = s->previous = 0;
    s->outcome = outcome;
    dfu_say(b, "back to slot ", s->slot);
}

static void count_crash(struct dfu_boot *b, const struct dfu_crash *crash, uint32_t cause) {
    struct dfu_state *s = &b->state;
    uint8_t most = s->max_crashes ? s->max_crashes : DFU_MAX_CRASHES;
    if (s->crashes >= most && !s->previous) { /* nowhere to go: say so, and spare the flash */
        dfu_say(b, "it crashed again, and there is no previous image", -1);
        return;
    }
    s->crashes++;
    s->reset = (uint8_t)crash->reason;
    dfu_diag_append(b, DFU_DIAG_CRASH, s->slot, cause, crash);
    dfu_say(b, "crashed, time ", s->crashes);
    if (s->crashes >= most) {
        if (s->previous && dfu_judge(b, !s->slot, &b->image) == DFU_OK)
            leave(b, cause == 0xdf0c0002 ? DFU_LEFT_UNCONFIRMED : DFU_LEFT_CRASHED);
        else
            s->previous = 0;
    }
    dfu_state_append(b);
}

/* No record can be read: the newest slot that verifies. */
static bool boot_unknown(struct dfu_boot *b) {
    int other;
    uint32_t sequence;
    bool blank = dfu_blank(b, DFU_STATE_AT, dfu_state_log.sectors * DFU_SECTOR);
    memset(&b->state, 0, sizeof b->state);
    other = dfu_judge(b, 1, &b->image);
    sequence = b->image.sequence;
    if (dfu_judge(b, 0, &b->image) == DFU_OK) {
        if (other == DFU_OK && sequence > b->image.sequence)
            b->state.slot = 1;
        b->state.previous = other == DFU_OK;
    } else if (other == DFU_OK) {
        b->state.slot = 1;
    } else {
        return false;
    }
    if (b->state.slot)
        dfu_judge(b, 1, &b->image);
    b->state.accept = b->image.sequence;
    b->state.outcome = blank ? DFU_NONE : DFU_STATE_UNREADABLE;
    if (!blank) {
        struct dfu_image image = b->image;
        dfu_say(b, "the state cannot be read", -1);
        dfu_diag_append(b, DFU_DIAG_STATE, b->state.slot, 0, NULL);
        b->image = image; /* the same place again, so its pointers are right */
    }
    dfu_state_append(b);
    return true;
}

static void install(struct dfu_boot *b) {
    struct dfu_state *s = &b->state;
    int error;
    dfu_say(b, "installing into slot ", !s->slot);
    error = dfu_install_stage(b);
    if (error) {
        uint32_t digest = 0;
        if (b->target.envelope.length && !dfu_envelope_read(&b->target.envelope))
            memcpy(&digest, b->target.envelope.manifest.sha256, 4);
        say_error(b, "not installed, error ", error, error);
        s->phase = DFU_CONFIRMED;
        s->outcome = DFU_INSTALL_FAILED;
        s->tried = digest;
        dfu_diag_append(b, DFU_DIAG_INSTALL, !s->slot, (uint32_t)error, NULL);
    } else {
        s->slot = !s->slot;
        s->phase = DFU_TRIAL;
        s->crashes = s->reset = s->outcome = 0;
        s->tried = 0;
        s->previous = 1;
    }
    dfu_state_append(b);
}

bool dfu_boot(struct dfu_boot *b, const struct dfu_crash *crash) {
    struct dfu_state *s = &b->state;
    uint32_t place, cause;
    int error = DFU_OK;
    dfu_keys_load(b);
    if (b->open)
        dfu_say(b, "warning: no key: any image is booted", -1);
    if (b->locked)
        dfu_say(b, "the keys cannot be read: nothing is trusted", -1);
    b->known = dfu_log_newest(b, &dfu_state_log, s, &place);
    if (b->known && (s->slot > 1 || s->phase > DFU_INSTALL))
        b->known = false;
    if (!b->known) {
        if (!boot_unknown(b)) {
            dfu_say(b, "no slot can be booted", -1);
            return false;
        }
    } else {
        if (s->phase == DFU_INSTALL)
            install(b);
        else if (dfu_is_crash(crash, &cause))
            count_crash(b, crash, cause);
        error = dfu_judge(b, s->slot, &b->image);
        if (error) {
            struct dfu_state before = *s;
            say_error(b, "not booting slot ", s->slot, error);
            dfu_diag_append(b, DFU_DIAG_REFUSED, s->slot, (uint32_t)error, NULL);
            leave(b, OUTCOME[error]);
            error = dfu_judge(b, s->slot, &b->image);
            if (error) {
                say_error(b, "nor slot ", s->slot, error);
                *s = before;
                return false;
            }
            dfu_state_append(b);
        }
    }
    if (b->image.key != 0xff && b->keys.development >> b->image.key & 1)
        dfu_say(b, "warning: signed with a development key", -1);
    if (s->phase == DFU_CONFIRMED)
        dfu_keys_rotate(b, &b->image);
    dfu_say(b, s->phase == DFU_TRIAL ? "boot on trial slot " : "boot slot ", s->slot);
    return true;
}
