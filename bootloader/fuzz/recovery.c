/* Bytes of the recovery line. Nothing outside of slots and logs may be written. */
#include "host.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t flash[0x400000], framed[65536], output[4096];
    uint32_t result[2], n = 0;
    /* the fuzzer does not know CRC-32: each piece of the input, a length byte before it, becomes a right frame */
    memset(flash + DFU_STATE_AT, 0xff, 2 * DFU_SECTOR);
    memset(flash + DFU_KEYS_AT, 0xff, 6 * DFU_SECTOR);
    memset(flash + DFU_SLOT_AT(0), 0xff, 65536);
    memset(flash + DFU_SLOT_AT(0) + DFU_IMAGE_MAX, 0xff, DFU_SECTOR);
    memset(flash + DFU_SLOT_AT(1), 0xff, 65536);
    memset(flash + DFU_SLOT_AT(1) + DFU_IMAGE_MAX, 0xff, DFU_SECTOR);
    for (uint32_t at = 0; at + 2 < size && n < sizeof framed - 8192;) {
        uint32_t m = data[at] | (data[at + 1] & 7u) << 8, crc;
        at += 2;
        if (m > size - at)
            m = (uint32_t)size - at;
        crc = dfu_crc32(0, data + at, m);
        framed[n++] = 0xc0;
        for (uint32_t i = 0; i < m + 4; i++) {
            uint8_t byte = i < m ? data[at + i] : (uint8_t)(crc >> 8 * (i - m));
            if (byte == 0xc0 || byte == 0xdb) {
                framed[n++] = 0xdb;
                byte = byte == 0xc0 ? 0xdc : 0xdd;
            }
            framed[n++] = byte;
        }
        framed[n++] = 0xc0;
        at += m;
    }
    host_recover(flash, sizeof flash, framed, n, output, sizeof output, result);
    if (result[1])
        abort();
    return 0;
}
