/* The core on this machine: a flash in memory, a hash in C. For tests and fuzzers. */
#ifndef DFU_HOST_H
#define DFU_HOST_H
#include "dfu.h"

struct host {
    uint8_t *flash;
    uint32_t flash_size;
    const uint8_t *input; /* of the recovery line */
    uint32_t input_length, input_at;
    uint8_t *output;
    uint32_t output_length, output_max;
    uint32_t operations, outside; /* outside: operations below the state log or beyond the flash, none of which may be; */
    bool slot_only;               /* with this, also any outside of slot 1 and the place for a table */
    struct {
        uint32_t h[8];
        uint8_t block[64];
        uint64_t total;
    } sha;
};

void host_start(struct host *h, struct dfu_hw *hw, struct dfu_boot *b);

/* For ctypes. */
int host_boot(uint8_t *flash, uint32_t size, uint32_t reason, uint32_t store0, uint32_t store6, uint32_t *sram, uint32_t sram_words,
              uint32_t result[4]);
int host_judge(uint8_t *flash, uint32_t size, uint8_t slot);
int host_zstd(const uint8_t *source, uint32_t length, const uint8_t *prefix, uint32_t prefix_length, uint8_t *out, uint32_t size);
/* Chunks, one behind the other, into slot 1 of a flash of DFU_FLASH_MIN bytes with the base in slot 0; result: the next chunk, outside. */
int host_chunks(uint8_t *flash, uint8_t kind, uint32_t size, const uint8_t *base, uint32_t base_length, const uint8_t *chunks, uint32_t length,
                uint32_t result[2]);
/* The view of an old image by a decoded table, in pieces of `step` bytes. */
int host_view(uint8_t *flash, const uint8_t *old, uint32_t old_length, const uint8_t *table, uint32_t length, uint32_t size, uint8_t *out,
              uint32_t step);
/* Take the absolute form `image` back, in place, as a chunk from `page` on (up to 32 pages); then make the form anew, in pieces. */
int host_form(uint8_t *flash, const uint8_t *old, uint32_t old_length, const uint8_t *table, uint32_t length, uint8_t *image, uint32_t size,
              uint32_t page, uint8_t *form, uint32_t step);
int host_verify(const uint8_t *key, const uint8_t *signature, const uint8_t *message, uint32_t length);
int host_envelope(const uint8_t *data, uint32_t length, uint32_t result[4]);
int host_chunk(const uint8_t *data, uint32_t length, uint32_t result[6]);
int host_recover(uint8_t *flash, uint32_t size, const uint8_t *input, uint32_t length, uint8_t *output, uint32_t output_max,
                 uint32_t result[2]);
uint32_t host_sizes(uint32_t which);
#endif
