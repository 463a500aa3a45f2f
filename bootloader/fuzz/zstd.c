/* Frames into the decoder; the first byte says how much of the input is the prefix. */
#include "host.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t out[32768];
    uint32_t prefix, length;
    if (size < 3)
        return 0;
    prefix = data[0] * 16u;
    length = 1u + ((data[1] | data[2] << 8) & 0x7fff);
    data += 3;
    size -= 3;
    if (prefix > size)
        prefix = (uint32_t)size;
    host_zstd(data + prefix, (uint32_t)size - prefix, data, prefix, out, length);
    return 0;
}
