/* A slot's content, with or without a trailer, into the judge of images. */
#include "host.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t flash[0x400000];
    uint32_t n = size > 8192 ? 8192 : (uint32_t)size, m = size > 8192 ? (uint32_t)size - 8192 : 0;
    memset(flash + DFU_SLOT_AT(0), 0xff, 16384);
    memset(flash + DFU_SLOT_AT(0) + DFU_IMAGE_MAX, 0xff, DFU_SECTOR);
    memset(flash + DFU_KEYS_AT, 0xff, 2 * DFU_SECTOR);
    memcpy(flash + DFU_SLOT_AT(0), data, n);
    memcpy(flash + DFU_SLOT_AT(0) + DFU_IMAGE_MAX, data + n, m > DFU_SECTOR ? DFU_SECTOR : m);
    host_judge(flash, sizeof flash, 0);
    return 0;
}
