/* Writing an image into the idle slot from chunks. Sectors that are already right are left alone, so that doing it again after
 * a power cut changes nothing but what is still wrong. */
#include "dfu.h"

#define ALLOW_DOWNGRADE 1

static bool same_text(const uint8_t *a, uint32_t n, const uint8_t *b, uint32_t m) {
    return n == m && !memcmp(a, b, n);
}

/* May b->target.envelope be installed? The image in the other slot says which app and hardware this device is. */
static int judge(struct dfu_boot *b) {
    struct dfu_envelope *e = &b->target.envelope, *own = &b->image.envelope;
    struct dfu_manifest *m = &e->manifest;
    uint8_t key;
    int error = dfu_envelope_read(e);
    if (error)
        return error;
    error = dfu_keys_judge(b, e, &key);
    if (error)
        return error;
    if (m->floor > m->sequence) /* once confirmed, it would not be booted again */
        return DFU_E_MANIFEST;
    if (m->size > DFU_IMAGE_MAX)
        return DFU_E_SIZE;
    if (b->known && (m->sequence < b->state.floor || (m->sequence < b->state.accept && !(m->flags & ALLOW_DOWNGRADE))))
        return DFU_E_SEQUENCE;
    dfu_trailer_read(b, !b->target.slot, own);
    if (own->length && !dfu_envelope_read(own)) {
        struct dfu_manifest *o = &own->manifest;
        if (!same_text(m->app, m->app_length, o->app, o->app_length) ||
            !same_text(m->hardware, m->hardware_length, o->hardware, o->hardware_length))
            return DFU_E_MANIFEST;
    }
    return DFU_OK;
}

/* The length of the image that a package starts from: as its manifest says, or as its segment table does. */
static int base_length(struct dfu_boot *b, uint8_t slot, uint32_t *length) {
    uint32_t at = DFU_SLOT_AT(slot), position = 24, size;
    uint8_t header[24];
    if (b->image.envelope.length) {
        *length = b->image.envelope.manifest.size;
        return DFU_OK;
    }
    if (b->hw->read(b->hw->ctx, at, header, 24))
        return DFU_E_FLASH;
    if (header[0] != 0xe9 || header[1] > 16)
        return DFU_E_BASE;
    for (uint32_t i = 0; i < header[1]; i++) {
        if (b->hw->read(b->hw->ctx, at + position + 4, &size, 4))
            return DFU_E_FLASH;
        if (size > DFU_IMAGE_MAX - position)
            return DFU_E_BASE;
        position += 8 + size;
        if (position > DFU_IMAGE_MAX - 64)
            return DFU_E_BASE;
    }
    *length = ((position + 16) & ~15u) + (header[23] ? 32 : 0);
    return DFU_OK;
}

static bool trailer_is(struct dfu_boot *b, const struct dfu_envelope *e) {
    dfu_trailer_read(b, b->target.slot, &b->image.envelope);
    return b->image.envelope.length == e->length && !memcmp(b->image.envelope.bytes, e->bytes, e->length);
}

/* Start, or start again, the installation of b->target.envelope into the slot. base: what a delta starts from. After an error
 * nothing is written. */
int dfu_install_begin(struct dfu_boot *b, uint8_t slot, uint8_t kind, const uint8_t base[32]) {
    struct dfu_target *t = &b->target;
    uint8_t digest[32];
    uint32_t trailer = DFU_SLOT_AT(slot) + DFU_IMAGE_MAX;
    int error;
    t->active = false;
    t->slot = slot;
    t->kind = kind;
    t->next = t->page = 0;
    if (kind < DFU_FULL || kind > DFU_MAPPED)
        return DFU_E_KIND;
    error = judge(b);
    if (error)
        return error;
    if (kind != DFU_FULL) {
        error = base_length(b, !slot, &t->base_length);
        if (!error)
            error = dfu_digest(b, DFU_SLOT_AT(!slot), t->base_length, digest);
        if (error || memcmp(digest, base, 32))
            return error ? error : DFU_E_BASE;
    } else {
        t->base_length = 0;
    }
    if (trailer_is(b, &t->envelope)) { /* it was finished before, unless the flash says otherwise */
        error = dfu_digest(b, DFU_SLOT_AT(slot), t->envelope.manifest.size, digest);
        t->skip = !error && !memcmp(digest, t->envelope.manifest.sha256, 32);
    } else {
        t->skip = false;
    }
    if (!t->skip && !dfu_blank(b, trailer, DFU_SECTOR) && b->hw->erase(b->hw->ctx, trailer))
        return DFU_E_FLASH;
    t->active = true;
    return DFU_OK;
}

/* The base; behind it the image from t->behind on. Of a mapped delta the base's view and the image's absolute form. */
static int window_read(void *ctx, uint32_t position, uint8_t *buffer, uint32_t length) {
    struct dfu_boot *b = ctx;
    const struct dfu_target *t = &b->target;
    while (length) {
        bool base = position < t->base_length;
        uint32_t at = base ? position : position - t->base_length + t->behind, n = length;
        int error;
        if (base && n > t->base_length - at)
            n = t->base_length - at;
        if (t->kind != DFU_MAPPED)
            error = b->hw->read(b->hw->ctx, DFU_SLOT_AT(base ? !t->slot : t->slot) + at, buffer, n);
        else
            error = base ? dfu_mapped_view(b->mapped, at, buffer, n) : dfu_mapped_form(b->mapped, at, buffer, n);
        if (error)
            return DFU_E_FLASH;
        position += n;
        buffer += n;
        length -= n;
    }
    return DFU_OK;
}

/* 0: the bytes stand there, 1: they do not, DFU_E_FLASH. */
static int differs(const struct dfu_hw *hw, uint32_t at, const uint8_t *data, uint32_t length) {
    uint8_t there[256];
    for (uint32_t done = 0, n; done < length; done += n) {
        n = length - done < sizeof there ? length - done : sizeof there;
        if (hw->read(hw->ctx, at + done, there, n))
            return DFU_E_FLASH;
        if (memcmp(there, data + done, n))
            return 1;
    }
    return 0;
}

/* Write a sector, or the start of one, unless it stands there already, and read it back. data has room for padding to a word. */
int dfu_sector_write(const struct dfu_hw *hw, uint32_t at, uint8_t *data, uint32_t length) {
    int found = differs(hw, at, data, length);
    if (found != 1)
        return found;
    while (length & 3)
        data[length++] = 0xff;
    return hw->erase(hw->ctx, at) || hw->program(hw->ctx, at, data, length) || differs(hw, at, data, length) ? DFU_E_FLASH : DFU_OK;
}

static int window_page(void *ctx, uint8_t *data, uint32_t length) {
    struct dfu_boot *b = ctx;
    struct dfu_target *t = &b->target;
    const struct dfu_hw *hw = b->hw;
    hw->feed(hw->ctx);
    if (t->page >= DFU_IMAGE_MAX / DFU_SECTOR)
        return DFU_E_SIZE;
    if (t->kind == DFU_MAPPED)
        dfu_mapped_back(b->mapped, t->page, data, length);
    t->value = dfu_crc32(t->value, data, length);
    return dfu_sector_write(hw, DFU_SLOT_AT(t->slot) + t->page++ * DFU_SECTOR, data, length);
}

static int table_page(void *ctx, uint8_t *data, uint32_t length) {
    struct dfu_target *t = &((struct dfu_boot *)ctx)->target;
    (void)data;
    if (t->page)
        return DFU_E_CHUNK;
    t->page = length;
    return DFU_OK;
}

/* Read the table with which the first chunk of a mapped delta begins; c's payload is then what stands behind it, value its CRC. */
static int table_read(struct dfu_boot *b, struct dfu_chunk *c, uint32_t *value) {
    struct dfu_target *t = &b->target;
    struct dfu_mapped *m = b->mapped;
    struct dfu_window w = {b, 0, true, window_read, table_page};
    const uint8_t *data = c->payload;
    uint32_t n, mark, used = 1;
    int error;
    if (c->length < 2)
        return DFU_E_CHUNK;
    mark = *data++ & 127;
    if (c->payload[0] > 127) {
        mark |= (uint32_t)*data++ << 7;
        used = 2;
    }
    n = mark >> 1;
    if (n > c->length - used || n > DFU_SECTOR)
        return DFU_E_CHUNK;
    c->payload = data + n;
    c->length -= used + n;
    if (mark & 1) {
        t->page = 0;
        error = dfu_zstd_decode(b->zstd, data, n, DFU_SECTOR, &w);
        if (error)
            return error;
        data = b->zstd->page;
        n = t->page;
    }
    *value = dfu_crc32(0, data, n);
    m->hw = b->hw;
    m->old_at = DFU_SLOT_AT(!t->slot);
    m->old_length = t->base_length;
    m->new_at = DFU_SLOT_AT(t->slot);
    return dfu_mapped_table(m, data, n, t->envelope.manifest.size);
}

/* Is what the chunk would write already there? value: the CRC of what comes before it. */
static int already(struct dfu_boot *b, const struct dfu_chunk *c, uint32_t size, uint32_t value, bool *there) {
    uint32_t at = DFU_SLOT_AT(b->target.slot) + c->page * DFU_SECTOR;
    for (uint32_t done = 0; done < size; done += DFU_SECTOR) {
        uint32_t n = size - done < DFU_SECTOR ? size - done : DFU_SECTOR;
        if (b->hw->read(b->hw->ctx, at + done, b->zstd->page, n))
            return DFU_E_FLASH;
        value = dfu_crc32(value, b->zstd->page, n);
    }
    *there = value == c->crc;
    return DFU_OK;
}

/* Write one chunk, the next in order; *used: its length. After an error it may be given again. */
int dfu_install_chunk(struct dfu_boot *b, const uint8_t *data, uint32_t length, uint32_t *used) {
    struct dfu_target *t = &b->target;
    struct dfu_window w = {b, 0, false, window_read, window_page};
    struct dfu_chunk c;
    uint32_t size = t->envelope.manifest.size, first, value = 0;
    bool there;
    int error = dfu_chunk_parse(data, length, &c, used);
    if (error)
        return error;
    first = c.page * DFU_SECTOR;
    if (!t->active || c.number != t->next)
        return DFU_E_CHUNK;
    if (t->kind == DFU_MAPPED && !c.number) {
        error = table_read(b, &c, &value);
        if (error)
            return error;
    }
    if ((!c.pages && c.length) || first >= size)
        return DFU_E_CHUNK;
    size = size - first < c.pages * DFU_SECTOR ? size - first : c.pages * DFU_SECTOR;
    error = already(b, &c, size, value, &there);
    if (error)
        return error;
    if (!there) {
        if (t->skip) /* finished before: nothing may be left to write */
            return DFU_E_CHUNK;
        t->page = c.page;
        t->value = value;
        w.prefix = t->base_length;
        t->behind = t->kind == DFU_FULL ? 0 : first;
        if (t->kind == DFU_MAPPED) {
            memset(b->mapped->carries, 0, sizeof b->mapped->carries);
            b->mapped->first = first;
            if (b->mapped->flags & 1)
                t->behind = first < DFU_HISTORY ? 0 : first - DFU_HISTORY;
        }
        w.prefix += first - t->behind;
        error = dfu_zstd_decode(b->zstd, c.payload, c.length, size, &w);
        if (!error && t->value != c.crc)
            error = DFU_E_CHUNK;
        if (error)
            return error;
    }
    t->next++;
    return DFU_OK;
}

/* Everything is written: check it, write the trailer, judge the slot as every boot will. b->image is then the new one. */
int dfu_install_finish(struct dfu_boot *b) {
    struct dfu_target *t = &b->target;
    struct dfu_envelope *e = &t->envelope;
    uint32_t at = DFU_SLOT_AT(t->slot) + DFU_IMAGE_MAX, end, head[2] = {DFU_TRAILER_MAGIC, e->length}, crc;
    uint8_t digest[32];
    int error;
    if (!t->active)
        return DFU_E_ORDER;
    t->active = false;
    error = dfu_digest(b, DFU_SLOT_AT(t->slot), e->manifest.size, digest);
    if (error)
        return error;
    if (memcmp(digest, e->manifest.sha256, 32))
        return DFU_E_HASH;
    if (!trailer_is(b, e)) {
        if (!dfu_blank(b, at, DFU_SECTOR) && b->hw->erase(b->hw->ctx, at))
            return DFU_E_FLASH;
        end = 8 + ((e->length + 3) & ~3u);
        memset(b->sector, 0xff, end);
        memcpy(b->sector, head, 8);
        memcpy(b->sector + 8, e->bytes, e->length);
        crc = dfu_crc32(0, b->sector, end);
        memcpy(b->sector + end, &crc, 4);
        if (b->hw->program(b->hw->ctx, at, b->sector, end + 4) || !trailer_is(b, e))
            return DFU_E_FLASH;
    }
    return dfu_judge(b, t->slot, &b->image);
}

/* Install what an agent left in dfu_stage into the idle slot. */
int dfu_install_stage(struct dfu_boot *b) {
    const struct dfu_hw *hw = b->hw;
    struct dfu_envelope *e = &b->target.envelope;
    uint32_t head[13], end, crc, at = DFU_SECTOR;
    int error;
    e->length = 0;
    if (hw->read(hw->ctx, DFU_STAGE_AT, head, sizeof head))
        return DFU_E_FLASH;
    if (head[0] != DFU_STAGE_MAGIC || head[2] > DFU_STAGE_SIZE - DFU_SECTOR - (head[3] == DFU_MAPPED ? DFU_TABLE_SIZE : 0) ||
        head[12] > DFU_ENVELOPE_MAX)
        return DFU_E_STAGE;
    end = 52 + ((head[12] + 3) & ~3u);
    if (hw->read(hw->ctx, DFU_STAGE_AT, b->sector, end + 4))
        return DFU_E_FLASH;
    memcpy(&crc, b->sector + end, 4);
    if (crc != dfu_crc32(0, b->sector, end))
        return DFU_E_STAGE;
    e->length = head[12];
    memcpy(e->bytes, b->sector + 52, e->length);
    error = dfu_install_begin(b, !b->state.slot, (uint8_t)(head[3] > 255 ? 0 : head[3]), (const uint8_t *)&head[4]);
    while (!error && b->target.next < head[1]) {
        uint32_t left = DFU_SECTOR + head[2] - at, n = left < DFU_CHUNK_MAX ? left : DFU_CHUNK_MAX, used;
        if (left > DFU_STAGE_SIZE || n == 0)
            return DFU_E_STAGE;
        if (hw->read(hw->ctx, DFU_STAGE_AT + at, b->chunk, n))
            return DFU_E_FLASH;
        error = dfu_install_chunk(b, b->chunk, n, &used);
        at += (used + 3) & ~3u;
    }
    return error ? error : dfu_install_finish(b);
}
