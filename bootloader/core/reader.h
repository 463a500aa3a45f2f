/* Reading the msgpack subset of ../../docs/protocol.md. After a wrong byte `bad` is set and stays. */
#ifndef DFU_READER_H
#define DFU_READER_H
#include "dfu.h"

struct dfu_reader {
    const uint8_t *p, *end;
    bool bad;
};
uint32_t dfu_read_head(struct dfu_reader *r, uint8_t low, uint8_t wide);
uint32_t dfu_read_uint(struct dfu_reader *r);
const uint8_t *dfu_read_bytes(struct dfu_reader *r, bool text, uint32_t *length);
#endif
