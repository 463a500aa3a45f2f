/* Append-only logs of records that end in a CRC: a torn record is skipped and its place not used again, and the newest record is
 * never erased, whatever the flash does with reads, programs and erases. */
#include "dfu.h"

const struct dfu_log dfu_state_log = {DFU_STATE_AT, DFU_STATE_MAGIC, sizeof(struct dfu_state), 2};
const struct dfu_log dfu_keys_log = {DFU_KEYS_AT, DFU_KEYS_MAGIC, sizeof(struct dfu_keys), 2};
const struct dfu_log dfu_diag_log = {DFU_DIAG_AT, DFU_DIAG_MAGIC, sizeof(struct dfu_diag), 4};

uint32_t dfu_crc32(uint32_t value, const void *data, uint32_t length) {
    static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                       0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                       0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    const uint8_t *p = data;
    value = ~value;
    while (length--) {
        value ^= *p++;
        value = value >> 4 ^ table[value & 15];
        value = value >> 4 ^ table[value & 15];
    }
    return ~value;
}

bool dfu_blank(struct dfu_boot *b, uint32_t offset, uint32_t length) {
    while (length) {
        uint32_t n = length < DFU_SECTOR ? length : DFU_SECTOR;
        if (b->hw->read(b->hw->ctx, offset, b->sector, n))
            return false;
        for (uint32_t i = 0; i < n; i++)
            if (b->sector[i] != 0xff)
                return false;
        offset += n;
        length -= n;
    }
    return true;
}

static uint32_t word(const uint8_t *p) {
    return p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
}

struct dfu_found dfu_log_newest(struct dfu_boot *b, const struct dfu_log *log, void *record) {
    struct dfu_found found = {0, false, false};
    uint32_t seq = 0;
    for (uint32_t at = 0; at < log->sectors * DFU_SECTOR; at += DFU_SECTOR) {
        if (b->hw->read(b->hw->ctx, log->offset + at, b->sector, DFU_SECTOR)) {
            found.unread = true;
            continue;
        }
        for (uint32_t i = 0; i < DFU_SECTOR; i += log->size) {
            const uint8_t *p = b->sector + i;
            if (word(p) != log->magic || word(p + log->size - 4) != dfu_crc32(0, p, log->size - 4))
                continue;
            if (!found.any || word(p + 4) > seq) {
                found.any = true;
                found.place = at + i;
                seq = word(p + 4);
                memcpy(record, p, log->size);
            }
        }
    }
    return found;
}

/* Program the record and read it back. A place that keeps something else is not blank any more, and is skipped from then on. */
static bool stands(struct dfu_boot *b, const struct dfu_log *log, uint32_t at, const void *record) {
    return dfu_blank(b, at, log->size) && !b->hw->program(b->hw->ctx, at, record, log->size) &&
           !b->hw->read(b->hw->ctx, at, b->sector, log->size) && !memcmp(b->sector, record, log->size);
}

int dfu_log_append(struct dfu_boot *b, const struct dfu_log *log, void *record) {
    uint8_t *p = record, last[sizeof(struct dfu_diag)];
    struct dfu_found found = dfu_log_newest(b, log, last);
    uint32_t head[2] = {log->magic, found.any ? word(last + 4) : 0}, sector = 0, at = 0, crc;
    if (found.unread || (word(p + 4) != DFU_ANY_SEQ && word(p + 4) != head[1]))
        return DFU_E_FLASH;
    head[1]++;
    memcpy(p, head, 8);
    crc = dfu_crc32(0, p, log->size - 4);
    memcpy(p + log->size - 4, &crc, 4);
    if (found.any) {
        sector = found.place / DFU_SECTOR;
        at = found.place % DFU_SECTOR;
    }
    /* The sector of the newest record first, which is not erased; then the others in turn. With no record there is none to lose. */
    for (uint32_t turn = 0; turn < log->sectors + (found.any ? 0u : 1u); turn++) {
        uint32_t base = log->offset + sector * DFU_SECTOR;
        if (!turn || dfu_blank(b, base, DFU_SECTOR) || !b->hw->erase(b->hw->ctx, base))
            for (; at < DFU_SECTOR; at += log->size)
                if (stands(b, log, base + at, record))
                    return DFU_OK;
        at = 0;
        sector = sector + 1 == log->sectors ? 0 : sector + 1;
    }
    head[1]--; /* it still follows the same one */
    memcpy(p, head, 8);
    return DFU_E_FLASH;
}
