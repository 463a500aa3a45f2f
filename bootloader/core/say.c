/* What the bootloader says on its console: ../../docs/bootloader.md lists the lines. It decides nothing and writes nothing. */
#include "dfu.h"

void dfu_say(struct dfu_boot *b, const char *what, int number) {
    char digits[12];
    int at = sizeof digits - 1;
    digits[at] = 0;
    b->hw->print(b->hw->ctx, "dfud boot: ");
    b->hw->print(b->hw->ctx, what);
    if (number >= 0) {
        do
            digits[--at] = (char)('0' + number % 10);
        while (number /= 10);
        b->hw->print(b->hw->ctx, digits + at);
    }
    b->hw->print(b->hw->ctx, "\n");
}

static const char *describe(int error) {
    switch (error) {
    case DFU_E_EMPTY: return "no image";
    case DFU_E_HASH: return "SHA-256 is wrong";
    case DFU_E_SIGNATURE: return "no trusted key signed it";
    case DFU_E_SEQUENCE: return "sequence is too low";
    case DFU_E_SEGMENTS: return "bad segment table";
    case DFU_E_CHIP: return "made for another chip";
    case DFU_E_FLASH_SIZE: return "made for a larger flash";
    case DFU_E_OVERLAP: return "a segment lies outside of the application's memory";
    case DFU_E_MANIFEST: return "bad manifest";
    case DFU_E_CHUNK: return "bad chunk";
    case DFU_E_ZSTD: return "a chunk does not decode";
    case DFU_E_BASE: return "starts from another image";
    case DFU_E_STAGE: return "nothing is staged";
    default: return "failed";
    }
}

void dfu_say_error(struct dfu_boot *b, const char *what, int slot, int error) {
    dfu_say(b, what, slot);
    dfu_say(b, describe(error), -1);
}
