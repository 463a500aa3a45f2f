/* Arbitrary sectors of state, keys, diagnostics and stage into a whole boot. Nothing else may be written. */
#include "host.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint32_t PLACES[] = {DFU_STATE_AT, DFU_STATE_AT + DFU_SECTOR, DFU_KEYS_AT, DFU_DIAG_AT, DFU_STAGE_AT, DFU_STAGE_AT + DFU_SECTOR};
    static uint8_t flash[0x400000];
    static uint32_t sram[64];
    uint32_t result[4];
    if (size < 12)
        return 0;
    memset(flash + DFU_STATE_AT, 0xff, 2 * DFU_SECTOR);
    memset(flash + DFU_KEYS_AT, 0xff, 6 * DFU_SECTOR);
    memset(flash + DFU_STAGE_AT, 0xff, 3 * DFU_SECTOR);
    memcpy(sram, data, size < sizeof sram ? size : sizeof sram);
    for (uint32_t at = 12, i = 0; at < size; i++) {
        uint32_t n = 32u << (data[at] & 7), place = PLACES[(data[at] >> 3) % 6];
        at++;
        if (n > size - at)
            n = (uint32_t)size - at;
        memcpy(flash + place + (i % 4) * 32, data + at, n > DFU_SECTOR - 128 ? DFU_SECTOR - 128 : n);
        at += n;
    }
    host_boot(flash, sizeof flash, data[0], data[1] & 1 ? 0xdf0c0001 : 0, data[1] & 2 ? 0x80040004 : 0, sram, 64, result);
    if (result[3])
        abort();
    return 0;
}
