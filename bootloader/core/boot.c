/* What runs: current first, a crashed one again up to its maximum, one on trial up to its number of starts, then previous. */
#include "dfu.h"

#define DEEP_SLEEP 5u /* the reset reason of a wake */

static const uint8_t OUTCOME[DFU_E_KIND + 1] = {
    DFU_NONE,       DFU_LEFT_IMAGE, DFU_LEFT_IMAGE, DFU_LEFT_HASH,      DFU_LEFT_SIGNATURE, DFU_LEFT_SEQUENCE, DFU_LEFT_IMAGE,
    DFU_LEFT_IMAGE, DFU_LEFT_IMAGE, DFU_LEFT_IMAGE, DFU_LEFT_SIGNATURE, DFU_LEFT_IMAGE,     DFU_LEFT_IMAGE,    DFU_LEFT_IMAGE,
    DFU_LEFT_IMAGE, DFU_LEFT_IMAGE, DFU_LEFT_IMAGE, DFU_LEFT_IMAGE,     DFU_LEFT_IMAGE};

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
    s->crashes = s->previous = s->starts = 0;
    s->outcome = outcome;
    dfu_say(b, "back to slot ", s->slot);
}

/* The current image has used up what it had: the other one is current if it verifies, else this one stays, and is not counted. */
static void give_up(struct dfu_boot *b, uint8_t outcome) {
    if (b->state.previous && dfu_judge(b, !b->state.slot, &b->image) == DFU_OK)
        leave(b, outcome);
    else
        b->state.previous = 0;
}

/* Keep the state. A start on trial or after a crash that cannot be counted is not made while there is another image, for such starts
 * have no end. */
static void keep(struct dfu_boot *b) {
    if (!dfu_state_append(b))
        return;
    dfu_say(b, "the state cannot be written", -1);
    if (b->state.phase == DFU_TRIAL || b->state.crashes)
        give_up(b, DFU_NONE);
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
    if (s->crashes >= most)
        give_up(b, cause == DFU_MARK_UNCONFIRMED ? DFU_LEFT_UNCONFIRMED : DFU_LEFT_CRASHED);
    keep(b);
}

/* A start of an image on trial that is no crash. It may fail before it can say so, at an import: power cycles count, too. */
static void count_start(struct dfu_boot *b, const struct dfu_crash *crash) {
    struct dfu_state *s = &b->state;
    uint32_t used = s->starts + (crash->reason == DEEP_SLEEP ? 1u : DFU_START_COST);
    if (!s->previous)
        return;
    if (used <= DFU_MAX_STARTS * DFU_START_COST) {
        s->starts = (uint8_t)(used & 127);
    } else {
        dfu_say(b, "never confirmed", -1);
        dfu_diag_append(b, DFU_DIAG_CRASH, s->slot, DFU_MARK_UNCONFIRMED, NULL);
        give_up(b, DFU_LEFT_UNCONFIRMED);
    }
    keep(b);
}

/* No record can be read: the newest slot that verifies; after a crash that cannot be counted, the other one. */
static bool boot_unknown(struct dfu_boot *b, bool crashed) {
    int other;
    uint32_t sequence;
    bool blank = dfu_blank(b, DFU_STATE_AT, dfu_state_log.sectors * DFU_SECTOR);
    other = dfu_judge(b, 1, &b->image);
    sequence = b->image.sequence;
    if (dfu_judge(b, 0, &b->image) == DFU_OK) {
        b->state.previous = other == DFU_OK;
        b->state.slot = b->state.previous && (sequence > b->image.sequence) != (crashed && b->blind);
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
    keep(b);
    return true;
}

static void install(struct dfu_boot *b, const struct dfu_crash *crash) {
    struct dfu_state *s = &b->state;
    int error;
    if (b->blind) { /* which slot is the idle one? */
        s->phase = DFU_CONFIRMED;
        return;
    }
    dfu_say(b, "installing into slot ", !s->slot);
    error = dfu_install_stage(b);
    if (error) {
        uint32_t digest = 0;
        if (b->target.envelope.length && !dfu_envelope_read(&b->target.envelope))
            memcpy(&digest, b->target.envelope.manifest.sha256, 4);
        dfu_say_error(b, "not installed, error ", error, error);
        s->phase = DFU_CONFIRMED;
        s->outcome = DFU_INSTALL_FAILED;
        s->tried = digest;
        dfu_diag_append(b, DFU_DIAG_INSTALL, !s->slot, (uint32_t)error, NULL);
        keep(b);
    } else {
        dfu_state_trial(s, !s->slot, true);
        count_start(b, crash);
    }
}

bool dfu_boot(struct dfu_boot *b, const struct dfu_crash *crash) {
    struct dfu_state *s = &b->state;
    uint32_t cause;
    int error = DFU_OK;
    dfu_keys_load(b);
    if (b->open)
        dfu_say(b, "warning: no key: any image is booted", -1);
    if (b->locked)
        dfu_say(b, "the keys cannot be read: nothing is trusted", -1);
    dfu_state_load(b);
    if (b->blind)
        dfu_say(b, "a sector of the state cannot be read", -1);
    if (!b->known) {
        if (!boot_unknown(b, dfu_is_crash(crash, &cause))) {
            dfu_say(b, "no slot can be booted", -1);
            return false;
        }
    } else {
        if (s->phase == DFU_INSTALL)
            install(b, crash);
        else if (dfu_is_crash(crash, &cause))
            count_crash(b, crash, cause);
        else if (s->phase == DFU_TRIAL)
            count_start(b, crash);
        error = dfu_judge(b, s->slot, &b->image);
        if (error) {
            struct dfu_state before = *s;
            dfu_say_error(b, "not booting slot ", s->slot, error);
            dfu_diag_append(b, DFU_DIAG_REFUSED, s->slot, (uint32_t)error, NULL);
            leave(b, OUTCOME[error]);
            error = dfu_judge(b, s->slot, &b->image);
            if (error) {
                dfu_say_error(b, "nor slot ", s->slot, error);
                *s = before;
                return false;
            }
            keep(b);
        }
    }
    if (b->image.key != 0xff && b->keys.development >> b->image.key & 1)
        dfu_say(b, "warning: signed with a development key", -1);
    if (s->phase == DFU_CONFIRMED && dfu_keys_rotate(b, &b->image))
        dfu_say(b, "the keys cannot be written", -1);
    dfu_say(b, s->phase == DFU_TRIAL ? "boot on trial slot " : "boot slot ", s->slot);
    return true;
}
