/* The state record: ../FORMAT.md, "State log". */
#include "dfu.h"

/* b->state, b->known and b->blind. What was never written by this code, such as another slot than 0 and 1, is as good as unread. */
void dfu_state_load(struct dfu_boot *b) {
    struct dfu_state *s = &b->state;
    struct dfu_found found = dfu_log_newest(b, &dfu_state_log, s);
    b->blind = found.unread;
    b->known = found.any && s->slot < 2 && s->phase <= DFU_INSTALL;
    if (!b->known) {
        uint32_t seq = found.any ? s->seq : 0;
        memset(s, 0, sizeof *s);
        s->seq = seq;
    }
    /* accept is the sequence of the image that was confirmed last. A floor above it would leave nothing to boot. */
    if (s->floor > s->accept)
        s->floor = s->accept;
}

/* The image in the slot is current from now on, until it is confirmed or left. */
void dfu_state_trial(struct dfu_state *s, uint8_t slot, bool previous) {
    s->slot = slot;
    s->phase = DFU_TRIAL;
    s->crashes = s->starts = s->reset = s->outcome = 0;
    s->tried = 0;
    s->previous = previous;
}

int dfu_state_append(struct dfu_boot *b) {
    b->state.writer = 1;
    b->known = true;
    return dfu_log_append(b, &dfu_state_log, &b->state);
}
