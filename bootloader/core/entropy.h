/* What zstd.c asks of entropy.c. */
#ifndef DFU_ENTROPY_H
#define DFU_ENTROPY_H
#include "dfu.h"

struct dfu_bits { /* read from the end towards the start; bit < 0: read beyond it */
    const uint8_t *p;
    int32_t bit;
};

/* False: n is 0, or the last byte marks no end. */
bool dfu_bits_start(struct dfu_bits *b, const uint8_t *p, uint32_t n);
/* Up to 32 bits; what lies before the start reads as 0. */
uint32_t dfu_bits_take(struct dfu_bits *b, uint32_t n);
/* Fill a state table from normalised counts. */
bool dfu_fse_build(uint16_t *table, uint32_t log, const int16_t *norm, uint32_t symbols);
/* Read the counts and build the table; the bytes used, or 0 if they are wrong. */
uint32_t dfu_fse_read(uint16_t *table, uint8_t *log, const uint8_t *p, uint32_t n, uint32_t log_max, uint32_t symbol_max);
void dfu_fse_step(uint32_t *state, const uint16_t *table, uint32_t log, struct dfu_bits *b);
/* The tree description; the bytes used, or 0. */
uint32_t dfu_huffman_read(struct dfu_zstd *z, const uint8_t *p, uint32_t n);
#endif
