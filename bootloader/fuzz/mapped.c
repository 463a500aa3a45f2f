/* Old images, tables and frames of mapped deltas. The form is a bijection; nothing but the slot and the table's place is written. */
#include "host.h"
#include <stdlib.h>

static uint32_t head(uint8_t *out, uint32_t number, uint32_t page, uint32_t pages, uint32_t crc, uint32_t length) {
    uint8_t h[] = {0x95, (uint8_t)number, (uint8_t)page, (uint8_t)pages, 0xce, (uint8_t)(crc >> 24), (uint8_t)(crc >> 16), (uint8_t)(crc >> 8),
                   (uint8_t)crc, 0xc5, (uint8_t)(length >> 8), (uint8_t)length};
    memcpy(out, h, sizeof h);
    return sizeof h;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t flash[DFU_FLASH_MIN], out[32768], image[32768], form[32768], chunks[40000];
    uint32_t old, table, wanted, n, step, page, spare, packed, alone, pages, result[2];
    const uint8_t *t;
    if (size < 8)
        return 0;
    old = data[0] | (data[1] & 31u) << 8;
    table = data[2] | (data[3] & 1u) << 8;
    wanted = 1u + (data[4] | (data[5] & 63u) << 8);
    page = data[6] & 3;
    spare = data[6] >> 2;
    step = data[7] & 1 ? 4096 : 1u + data[7] * 3u;
    data += 8;
    size -= 8;
    if (old > size)
        old = (uint32_t)size;
    t = data + old;
    size -= old;
    if (table > size)
        table = (uint32_t)size;
    size -= table;
    host_view(flash, data, old, t, table, wanted, out, step);

    /* whatever stands behind the table is also the form of a chunk, if the table is right */
    memset(image, 0, sizeof image);
    for (uint32_t i = 0; i < wanted; i++)
        image[i] = size ? t[table + i % size] : (uint8_t)i;
    memcpy(out, image, wanted);
    if (page * DFU_SECTOR < wanted && host_form(flash, data, old, t, table, image, wanted, page, form, step) == DFU_OK &&
        memcmp(form + page * DFU_SECTOR, out + page * DFU_SECTOR, wanted - page * DFU_SECTOR))
        abort();

    /* and a frame; the table goes as it is or as a frame of one raw block, in a chunk of its own or in front of the pages */
    packed = step & 2 ? 5 : 0;
    alone = step & 4;
    pages = (wanted + DFU_SECTOR - 1) / DFU_SECTOR - page;
    if (size > 30000)
        size = 30000;
    n = head(chunks, 0, alone ? 0 : page, alone ? 0 : pages, dfu_crc32(0, t, table), 2 + packed + table + (alone ? 0 : (uint32_t)size));
    /* the spare bits of a byte of the input make its length wrong */
    chunks[n++] = (uint8_t)(((packed + table) << 1 | (packed != 0) | 0x80) ^ spare);
    chunks[n++] = (uint8_t)((packed + table) >> 6);
    if (packed) {
        chunks[n++] = 0;
        chunks[n++] = 0x50;
        chunks[n++] = (uint8_t)(table << 3 | 1);
        chunks[n++] = (uint8_t)(table >> 5);
        chunks[n++] = 0;
    }
    memcpy(chunks + n, t, table);
    n += table;
    if (alone)
        n += head(chunks + n, 1, page, pages, 0, (uint32_t)size);
    memcpy(chunks + n, t + table, size);
    host_chunks(flash, DFU_MAPPED, wanted, data, old, chunks, n + (uint32_t)size, result);
    if (result[1])
        abort();
    return 0;
}
