/* Append-only logs of records that end in a CRC: a torn record is skipped and its place not used again, the only valid
 * record is never erased. */
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

bool dfu_log_newest(struct dfu_boot *b, const struct dfu_log *log, void *record, uint32_t *place) {
    bool found = false;
    uint32_t seq = 0;
    for (uint32_t at = 0; at < log->sectors * DFU_SECTOR; at += DFU_SECTOR) {
        if (b->hw->read(b->hw->ctx, log->offset + at, b->sector, DFU_SECTOR))
            continue;
        for (uint32_t i = 0; i < DFU_SECTOR; i += log->size) {
            const uint8_t *p = b->sector + i;
            if (word(p) != log->magic || word(p + log->size - 4) != dfu_crc32(0, p, log->size - 4))
                continue;
            if (!found || word(p + 4) > seq) {
                found = true;
                seq = word(p + 4);
                *place = at + i;
                memcpy(record, p, log->size);
            }
        }
    }
    return found;
}

/* The place behind everything that is programmed in the sector; DFU_SECTOR: there is none. */
static uint32_t free_place(struct dfu_boot *b, const struct dfu_log *log, uint32_t sector) {
    uint32_t place = DFU_SECTOR;
    if (b->hw->read(b->hw->ctx, log->offset + sector * DFU_SECTOR, b->sector, DFU_SECTOR))
        return DFU_SECTOR;
    while (place && b->sector[place - 1] == 0xff)
        place--;
    return (place + log->size - 1) / log->size * log->size;
}

int dfu_log_append(struct dfu_boot *b, const struct dfu_log *log, void *record) {
    uint8_t *p = record;
    uint32_t head[2], place = 0, sector = 0, at, crc;
    uint8_t body[sizeof(struct dfu_diag)];
    memcpy(body, record, log->size);
    head[0] = log->magic;
    head[1] = 1;
    if (dfu_log_newest(b, log, record, &place)) {
        head[1] = word(p + 4) + 1;
        sector = place / DFU_SECTOR;
    }
    memcpy(record, body, log->size);
    memcpy(record, head, 8);
    crc = dfu_crc32(0, record, log->size - 4);
    memcpy(p + log->size - 4, &crc, 4);
    for (uint32_t tries = 0; (at = free_place(b, log, sector)) == DFU_SECTOR; tries++) {
        if (tries == log->sectors)
            return DFU_E_FLASH;
        sector = sector + 1 == log->sectors ? 0 : sector + 1;
        if (!dfu_blank(b, log->offset + sector * DFU_SECTOR, DFU_SECTOR) &&
            b->hw->erase(b->hw->ctx, log->offset + sector * DFU_SECTOR))
            return DFU_E_FLASH;
    }
    return b->hw->program(b->hw->ctx, log->offset + sector * DFU_SECTOR + at, record, log->size) ? DFU_E_FLASH : DFU_OK;
}
