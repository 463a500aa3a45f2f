/* The msgpack subset, the envelope and the manifest: ../../docs/protocol.md. Bytes from outside. */
#include "reader.h"

static int fields(struct dfu_manifest *m, struct dfu_reader *r) {
    uint32_t count = dfu_read_head(r, 0x80, 0xde), last = 0;
    uint32_t seen = 0;
    if (count > 12)
        return DFU_E_MANIFEST;
    memset(m, 0, sizeof *m);
    for (uint32_t i = 0; i < count && !r->bad; i++) {
        uint32_t key = dfu_read_uint(r), n = 0;
        const uint8_t *p;
        if (key > 11 || (i && key <= last))
            return DFU_E_MANIFEST;
        last = key;
        seen |= 1u << key;
        switch (key) {
        case 0:
            r->bad |= dfu_read_uint(r) != 1;
            break;
        case 1:
            m->app = dfu_read_bytes(r, true, &n);
            r->bad |= n < 1 || n > 63;
            m->app_length = (uint8_t)n;
            break;
        case 2:
            m->version = dfu_read_bytes(r, true, &n);
            r->bad |= n < 1 || n > 64;
            m->version_length = (uint8_t)n;
            break;
        case 3:
            m->hardware = dfu_read_bytes(r, true, &n);
            r->bad |= n < 1 || n > 32;
            m->hardware_length = (uint8_t)n;
            break;
        case 4:
            m->sequence = dfu_read_uint(r);
            break;
        case 5:
            m->size = dfu_read_uint(r);
            break;
        case 6:
            p = dfu_read_bytes(r, false, &n);
            if (r->bad || n != 32)
                return DFU_E_MANIFEST;
            memcpy(m->sha256, p, 32);
            break;
        case 7:
            m->flags = dfu_read_uint(r);
            break;
        case 8:
            m->floor = dfu_read_uint(r);
            break;
        case 11: /* what of the other kind it runs with: the agent's to judge */
            r->bad |= dfu_read_head(r, 0x90, 0xdc) != 2;
            n = dfu_read_uint(r);
            r->bad |= dfu_read_uint(r) < n;
            break;
        default: {
            uint32_t items = dfu_read_head(r, 0x90, 0xdc);
            if (items > (key == 9 ? 4u : 11u))
                return DFU_E_MANIFEST;
            for (uint32_t k = 0; k < items && !r->bad; k++) {
                p = dfu_read_bytes(r, false, &n);
                if (n != (key == 9 ? 32u : 8u))
                    return DFU_E_MANIFEST;
                if (key == 9)
                    m->add[m->adds++] = p;
                else
                    m->revoke[m->revokes++] = p;
            }
        }
        }
    }
    return r->bad || r->p != r->end || (seen & 0xff) != 0xff || !m->size ? DFU_E_MANIFEST : DFU_OK;
}

/* Read e->bytes; the pointers then point into them. */
int dfu_envelope_read(struct dfu_envelope *e) {
    struct dfu_reader r = {e->bytes, e->bytes, false}, inner;
    uint32_t key, signature;
    if (e->length == 0 || e->length > DFU_ENVELOPE_MAX)
        return DFU_E_MANIFEST;
    r.end += e->length;
    if (dfu_read_head(&r, 0x90, 0xdc) != 3)
        return DFU_E_MANIFEST;
    e->signed_bytes = dfu_read_bytes(&r, false, &e->signed_length);
    e->key = dfu_read_bytes(&r, false, &key);
    e->signature = dfu_read_bytes(&r, false, &signature);
    if (r.bad || r.p != r.end)
        return DFU_E_MANIFEST;
    if (key == 0 && signature == 0)
        e->key = e->signature = NULL;
    else if (key != 8 || signature != 64)
        return DFU_E_MANIFEST;
    inner.p = e->signed_bytes;
    inner.end = e->signed_bytes + e->signed_length;
    inner.bad = false;
    return fields(&e->manifest, &inner);
}

int dfu_chunk_parse(const uint8_t *data, uint32_t length, struct dfu_chunk *chunk, uint32_t *used) {
    struct dfu_reader r = {data, data + length, false};
    if (dfu_read_head(&r, 0x90, 0xdc) != 5)
        return DFU_E_CHUNK;
    chunk->number = dfu_read_uint(&r);
    chunk->page = dfu_read_uint(&r);
    chunk->pages = dfu_read_uint(&r);
    chunk->crc = dfu_read_uint(&r);
    chunk->payload = dfu_read_bytes(&r, false, &chunk->length);
    if (r.bad || chunk->pages > DFU_PAGES_MAX || chunk->page > DFU_IMAGE_MAX / DFU_SECTOR || chunk->length == 0)
        return DFU_E_CHUNK;
    *used = (uint32_t)(r.p - data);
    return DFU_OK;
}

/* Map (low 0x80, wide 0xde) or array (0x90, 0xdc): its length. */
uint32_t dfu_read_head(struct dfu_reader *r, uint8_t low, uint8_t wide) {
    if (r->p < r->end && (*r->p & 0xf0) == low)
        return *r->p++ & 15;
    if (r->end - r->p >= 3 && *r->p == wide) {
        uint32_t n = (uint32_t)(r->p[1] << 8 | r->p[2]);
        r->p += 3;
        if (n > 15)
            return n;
    }
    r->bad = true;
    return 0;
}

static uint32_t big_endian(struct dfu_reader *r, uint32_t bytes) {
    uint32_t value = 0;
    if ((uint32_t)(r->end - r->p) < bytes) {
        r->bad = true;
        return 0;
    }
    while (bytes--)
        value = value << 8 | *r->p++;
    return value;
}

uint32_t dfu_read_uint(struct dfu_reader *r) {
    uint32_t value, type;
    if (r->p == r->end) {
        r->bad = true;
        return 0;
    }
    type = *r->p++;
    if (type < 0x80)
        return type;
    if (type < 0xcc || type > 0xce) {
        r->bad = true;
        return 0;
    }
    value = big_endian(r, 1u << (type - 0xcc));
    r->bad |= value < (type == 0xcc ? 0x80u : type == 0xcd ? 0x100u : 0x10000u); /* the shortest form only */
    return value;
}

const uint8_t *dfu_read_bytes(struct dfu_reader *r, bool text, uint32_t *length) {
    const uint8_t *p;
    uint32_t type = r->p < r->end ? *r->p : 0, n;
    *length = 0;
    if (r->bad || r->p == r->end) {
        r->bad = true;
        return NULL;
    }
    r->p++;
    if (text && (type & 0xe0) == 0xa0)
        n = type & 31;
    else if (type == (text ? 0xd9u : 0xc4u))
        n = big_endian(r, 1);
    else if (type == (text ? 0xdau : 0xc5u))
        n = big_endian(r, 2);
    else if (!text && type == 0xc6)
        n = big_endian(r, 4);
    else {
        r->bad = true;
        return NULL;
    }
    if (r->bad || n > (uint32_t)(r->end - r->p)) {
        r->bad = true;
        return NULL;
    }
    p = r->p;
    r->p += n;
    *length = n;
    return p;
}
