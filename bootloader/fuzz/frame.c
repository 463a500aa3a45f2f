/* Chunk frames, envelopes and manifests. */
#include "host.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint32_t result[6];
    host_chunk(data, (uint32_t)size, result);
    host_envelope(data, (uint32_t)size, result);
    return 0;
}
