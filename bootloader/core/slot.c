/* Whether what a slot holds may be booted. */
#include "dfu.h"

/* Loading is allowed here: below the bootloader in both views of SRAM, and RTC memory (facts: ESP-IDF's linker limits). */
static const uint32_t RAM[3][2] = {{0x3fc80000, 0x3fcce710}, {0x40380000, 0x403ce710}, {0x50000000, 0x50002000}};
#define DROM 0x3c000000u
#define IROM 0x42000000u
#define MAPPED 0x800000u
#define CHIP_ID 5

void dfu_trailer_read(struct dfu_boot *b, uint8_t slot, struct dfu_envelope *e) {
    uint32_t at = DFU_SLOT_AT(slot) + DFU_IMAGE_MAX, head[2], end, crc;
    e->length = 0;
    if (b->hw->read(b->hw->ctx, at, head, 8) || head[0] != DFU_TRAILER_MAGIC || head[1] == 0 || head[1] > DFU_ENVELOPE_MAX)
        return;
    end = 8 + ((head[1] + 3) & ~3u);
    if (b->hw->read(b->hw->ctx, at, b->sector, end + 4))
        return;
    memcpy(&crc, b->sector + end, 4);
    if (crc != dfu_crc32(0, b->sector, end))
        return;
    memcpy(e->bytes, b->sector + 8, head[1]);
    e->length = head[1];
}

int dfu_digest(struct dfu_boot *b, uint32_t offset, uint32_t length, uint8_t digest[32]) {
    const struct dfu_hw *hw = b->hw;
    hw->sha_start(hw->ctx);
    while (length) {
        uint32_t n = length < DFU_SECTOR ? length : DFU_SECTOR;
        if (hw->read(hw->ctx, offset, b->sector, n))
            return DFU_E_FLASH;
        hw->sha_update(hw->ctx, b->sector, n);
        hw->feed(hw->ctx);
        offset += n;
        length -= n;
    }
    hw->sha_finish(hw->ctx, digest);
    return DFU_OK;
}

/* Where a segment goes; mapped collects the pages of the one table that both buses share. */
static int place(const struct dfu_segment *s, uint32_t slot_at, uint32_t mapped[4]) {
    if (s->address == 0) /* esptool's padding between mapped segments */
        return DFU_OK;
    for (uint32_t i = 0; i < 3; i++)
        if (s->address >= RAM[i][0] && s->address < RAM[i][1])
            return s->size <= RAM[i][1] - s->address ? DFU_OK : DFU_E_OVERLAP;
    uint32_t base = s->address >= IROM ? IROM : DROM, page = (s->address - base) >> 16;
    if (s->address < base || s->address - base >= MAPPED || s->size > MAPPED - (s->address - base))
        return DFU_E_OVERLAP;
    if ((s->offset - slot_at) % 65536 != s->address % 65536)
        return DFU_E_SEGMENTS;
    for (uint32_t last = s->size ? (s->address - base + s->size - 1) >> 16 : page; page <= last; page++) {
        /* 127 is the bootloader's own: ESP-IDF looks there for its own image */
        if (page > 126 || mapped[page >> 5] >> (page & 31) & 1)
            return DFU_E_SEGMENTS;
        mapped[page >> 5] |= 1u << (page & 31);
    }
    return DFU_OK;
}

/* Header and segment table; *length: of the image, with the appended SHA-256. */
static int table(struct dfu_boot *b, struct dfu_image *image, uint32_t *length) {
    const uint32_t slot_at = DFU_SLOT_AT(image->slot);
    uint8_t header[24];
    uint32_t at = 24, mapped[4] = {0, 0, 0, 0}, pair[2];
    bool entered = false;
    if (b->hw->read(b->hw->ctx, slot_at, header, 24))
        return DFU_E_FLASH;
    if (header[0] != 0xe9)
        return DFU_E_EMPTY;
    if (header[12] != CHIP_ID || header[13])
        return DFU_E_CHIP;
    if (header[3] >> 4 > 7 || 0x100000u << (header[3] >> 4) > b->hw->flash_size)
        return DFU_E_FLASH_SIZE;
    if (header[1] == 0 || header[1] > 16)
        return DFU_E_SEGMENTS;
    memcpy(&image->entry, header + 4, 4);
    image->segments = header[1];
    for (uint32_t i = 0; i < image->segments; i++) {
        struct dfu_segment *s = &image->segment[i];
        int error;
        if (b->hw->read(b->hw->ctx, slot_at + at, pair, 8))
            return DFU_E_FLASH;
        at += 8;
        if (pair[1] % 4 || pair[0] % 4 || pair[1] > DFU_IMAGE_MAX - at)
            return DFU_E_SEGMENTS;
        s->address = pair[0];
        s->size = pair[1];
        s->offset = slot_at + at;
        at += pair[1];
        error = place(s, slot_at, mapped);
        if (error)
            return error;
        entered |= image->entry >= s->address && image->entry - s->address < s->size && s->address >= RAM[1][0];
        if (at > DFU_IMAGE_MAX - 64)
            return DFU_E_SEGMENTS;
    }
    *length = ((at + 16) & ~15u) + (header[23] ? 32 : 0);
    return entered ? DFU_OK : DFU_E_SEGMENTS;
}

/* Judge the slot: DFU_OK and *image filled, or why it is not booted. */
int dfu_judge(struct dfu_boot *b, uint8_t slot, struct dfu_image *image) {
    uint32_t length = 0;
    uint8_t want[32];
    int error;
    memset(image, 0, sizeof *image);
    image->slot = slot;
    image->key = 0xff;
    dfu_trailer_read(b, slot, &image->envelope);
    if (image->envelope.length) {
        if (dfu_envelope_read(&image->envelope)) {
            image->envelope.length = 0;
            return DFU_E_MANIFEST;
        }
        image->sequence = image->envelope.manifest.sequence;
    }
    error = table(b, image, &length);
    if (error)
        return error;
    if (image->envelope.length) {
        const struct dfu_manifest *m = &image->envelope.manifest;
        if (m->flags & (DFU_RAW | DFU_APP) || m->size < length || m->size > DFU_IMAGE_MAX)
            return DFU_E_MANIFEST;
        error = dfu_keys_judge(b, &image->envelope, &image->key);
        if (error)
            return error;
        if (b->known && m->sequence < b->state.floor)
            return DFU_E_SEQUENCE;
        memcpy(want, m->sha256, 32);
        length = m->size;
    } else {
        if (!b->open)
            return DFU_E_SIGNATURE;
        if (length < 32 || b->hw->read(b->hw->ctx, DFU_SLOT_AT(slot) + length - 32, want, 32))
            return DFU_E_FLASH;
        length -= 32;
        if (b->hw->read(b->hw->ctx, DFU_SLOT_AT(slot) + 20, b->sector, 4))
            return DFU_E_FLASH;
        if (b->sector[3] != 1) /* no appended SHA-256: nothing to judge it by */
            return DFU_E_HASH;
    }
    error = dfu_digest(b, DFU_SLOT_AT(slot), length, image->sha256);
    return error ? error : memcmp(image->sha256, want, 32) ? DFU_E_HASH : DFU_OK;
}
