/* What every port gives the core in the same way: its functions, by one name each, and the buffers. Include it behind dfu.h. */
#ifndef DFU_WIRING_H
#define DFU_WIRING_H

/* The members of a struct dfu_hw; the port has a static function of each name. */
#define DFU_PORT_FUNCTIONS                                                                                                                   \
    .read = flash_read, .program = flash_program, .erase = flash_erase, .sha_start = sha_start, .sha_update = sha_update,                    \
    .sha_finish = sha_finish, .print = print, .feed = feed, .get = get, .put = put

/* The buffers are the port's, for it knows where they may lie: sector has DFU_SECTOR bytes at a word's address, chunk DFU_CHUNK_MAX. */
static inline void dfu_wire(struct dfu_boot *b, const struct dfu_hw *hw, void *sector, uint8_t *chunk, struct dfu_zstd *zstd,
                            struct dfu_mapped *mapped) {
    b->hw = hw;
    b->sector = sector;
    b->chunk = chunk;
    b->zstd = zstd;
    b->mapped = mapped;
}

#endif
