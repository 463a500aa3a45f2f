/* What the bootloader's core offers and what it needs. C99, freestanding: no statics, no heap, no hardware; the flash, the
 * hash and every buffer are arguments. Formats: ../FORMAT.md and ../../docs/protocol.md; names follow them. */
#ifndef DFU_H
#define DFU_H
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifndef DFU_MAX_CRASHES
#define DFU_MAX_CRASHES 3 /* where the state record says 0 */
#endif
#ifndef DFU_MAX_STARTS
#define DFU_MAX_STARTS 10 /* of an image on trial; up to 15 */
#endif
#define DFU_START_COST 8 /* a start's share of the trial; one out of deep sleep takes 1 */

#define DFU_SECTOR 4096u
#define DFU_PAGES_MAX 1024u
#define DFU_ENVELOPE_MAX 1024u
#define DFU_PAYLOAD_MAX 65536u
#define DFU_CHUNK_MAX (DFU_PAYLOAD_MAX + 32u)

/* The map of ../FORMAT.md. */
#define DFU_STATE_AT 0xd000u
#define DFU_SLOT_AT(slot) ((slot) ? 0x1c0000u : 0x10000u)
#define DFU_SLOT_SIZE 0x1b0000u
#define DFU_IMAGE_MAX (DFU_SLOT_SIZE - DFU_SECTOR)
#define DFU_STAGE_AT 0x39a000u
#define DFU_STAGE_SIZE 0x60000u
#define DFU_KEYS_AT 0x3fa000u
#define DFU_DIAG_AT 0x3fc000u
#define DFU_TABLE_SIZE 0x4000u /* the end of the stage: the table of a mapped delta while it is installed */
#define DFU_TABLE_AT (DFU_STAGE_AT + DFU_STAGE_SIZE - DFU_TABLE_SIZE)
#define DFU_FLASH_MIN 0x400000u

#define DFU_STATE_MAGIC 0x53554644u
#define DFU_KEYS_MAGIC 0x4b554644u
#define DFU_DIAG_MAGIC 0x44554644u
#define DFU_TRAILER_MAGIC 0x54554644u
#define DFU_STAGE_MAGIC 0x47554644u

enum dfu_phase { DFU_CONFIRMED, DFU_TRIAL, DFU_INSTALL };
enum dfu_outcome {
    DFU_NONE, DFU_GOOD, DFU_LEFT_CRASHED, DFU_LEFT_HASH, DFU_LEFT_SIGNATURE, DFU_LEFT_SEQUENCE, DFU_LEFT_IMAGE,
    DFU_INSTALL_FAILED, DFU_STATE_UNREADABLE, DFU_REVERTED, DFU_LEFT_UNCONFIRMED
};
enum dfu_diag_type { DFU_DIAG_CRASH = 1, DFU_DIAG_TEXT, DFU_DIAG_REFUSED, DFU_DIAG_STATE, DFU_DIAG_INSTALL };
enum dfu_kind { DFU_FULL = 1, DFU_DELTA = 2, DFU_MAPPED = 3 };

/* Error numbers; they stand in diagnostics records and recovery answers, so they never change. */
enum dfu_error {
    DFU_OK = 0,
    DFU_E_EMPTY = 1,      /* no image at all */
    DFU_E_FLASH = 2,      /* the flash refused a read, a program or an erase */
    DFU_E_HASH = 3,       /* SHA-256 of the image */
    DFU_E_SIGNATURE = 4,  /* no trusted key signed it */
    DFU_E_SEQUENCE = 5,   /* below the floor, or below what is accepted */
    DFU_E_SEGMENTS = 6,   /* segment table */
    DFU_E_CHIP = 7,       /* made for another chip */
    DFU_E_FLASH_SIZE = 8, /* made for a larger flash */
    DFU_E_OVERLAP = 9,    /* a segment would be loaded over the bootloader or outside RAM */
    DFU_E_MANIFEST = 10,  /* manifest or envelope cannot be read, or is not for this device */
    DFU_E_CHUNK = 11,     /* a chunk's frame, place or CRC */
    DFU_E_ZSTD = 12,      /* a chunk's payload does not decode */
    DFU_E_BASE = 13,      /* the package starts from another image */
    DFU_E_STAGE = 14,     /* the stage's header cannot be read */
    DFU_E_SIZE = 15,      /* larger than the slot, or than a buffer */
    DFU_E_FRAME = 16,     /* recovery: a frame's checksum */
    DFU_E_ORDER = 17,     /* recovery: not now */
    DFU_E_KIND = 18       /* a package kind that is not known here */
};

/* The flash and the chip. Calls return 0, or anything else if they failed. Offsets and lengths of program are multiples of 4,
 * erase takes the offset of a sector; read takes any. */
struct dfu_hw {
    void *ctx;
    uint32_t flash_size;
    int (*read)(void *ctx, uint32_t offset, void *buffer, uint32_t length);
    int (*program)(void *ctx, uint32_t offset, const void *data, uint32_t length);
    int (*erase)(void *ctx, uint32_t offset);
    void (*sha_start)(void *ctx);
    void (*sha_update)(void *ctx, const void *data, uint32_t length);
    void (*sha_finish)(void *ctx, uint8_t digest[32]);
    void (*print)(void *ctx, const char *text);
    void (*feed)(void *ctx); /* the watchdog */
    int (*get)(void *ctx);   /* a byte of the recovery line, or -1: nothing came for a while */
    void (*put)(void *ctx, uint8_t byte);
};

struct dfu_state { /* the record of the state log */
    uint32_t magic, seq;
    uint8_t slot, phase, crashes, max_crashes;
    uint8_t previous : 1, starts : 7;
    uint8_t outcome, reset, writer;
    uint32_t floor, accept, tried, crc;
};

struct dfu_keys { /* the record of the key log */
    uint32_t magic, seq;
    uint8_t count, development, revoked, zero[5];
    uint8_t key[4][32];
    uint8_t revoked_id[11][8];
    uint8_t zero2[20];
    uint32_t crc;
};

struct dfu_diag { /* the record of the diagnostics ring */
    uint32_t magic, seq;
    uint8_t type, slot, crashes, reset;
    uint32_t cause, sequence;
    uint8_t version[32];
    uint32_t frame[34];
    uint32_t stack[32];
    uint8_t text[188];
    uint32_t zero, crc;
};

/* Flags of a manifest: no image for a slot. */
#define DFU_RAW 2u
#define DFU_APP 4u

struct dfu_manifest {
    const uint8_t *app, *version, *hardware;
    uint8_t app_length, version_length, hardware_length;
    uint32_t sequence, size, flags, floor;
    uint8_t sha256[32];
    uint8_t adds, revokes;
    const uint8_t *add[4];
    const uint8_t *revoke[11];
};

struct dfu_envelope {
    uint32_t length;
    uint8_t bytes[DFU_ENVELOPE_MAX];
    const uint8_t *signed_bytes, *key, *signature; /* into bytes; key and signature NULL: unsigned */
    uint32_t signed_length;
    struct dfu_manifest manifest;
};

struct dfu_segment {
    uint32_t address, offset, size; /* offset: in the flash */
};

struct dfu_image {
    uint32_t entry, sequence;
    uint8_t slot, segments, key; /* key: number of the one that signed it, ff: none */
    struct dfu_segment segment[16];
    uint8_t sha256[32];
    struct dfu_envelope envelope; /* length 0: none */
};

struct dfu_zstd {
    uint16_t sequence[512 + 256 + 512]; /* FSE: state count << 6 | symbol */
    uint16_t huffman[13];               /* the first code of every weight, left-aligned; behind the last: all of them */
    uint8_t symbol[256];                /* in the order of their codes */
    uint8_t first[12];                  /* of a weight's symbols, its place in symbol */
    uint8_t log[3], have[3], huffman_bits;
    uint32_t repeat[3];
    uint8_t page[DFU_SECTOR];
};

/* Where a frame's matches come from and where its output goes. Positions count from the start of the prefix; read is asked for
 * what stands before the page under way only, page is called with every finished one, which it may change. */
struct dfu_window {
    void *ctx;
    uint32_t prefix;
    bool shorter; /* the output may be shorter than said */
    int (*read)(void *ctx, uint32_t position, uint8_t *buffer, uint32_t length);
    int (*page)(void *ctx, uint8_t *data, uint32_t length);
};

/* A mapped delta under way (mapped.c). The table's entries stand in flash; here is the first start of every block of them, and
 * the block that was used last. */
#define DFU_PARTS_MAX 16u
#define DFU_HISTORY 0x40000u
#define DFU_ENTRIES_MAX 2048u
#define DFU_TABLE_BLOCK 16u
#define DFU_VIEW_PAGE 2048u
#define DFU_VIEW_BEFORE 260u /* of the page that is kept: the preroll may begin at an odd place */
#define DFU_NOT_CACHED 0xffffffffu
struct dfu_part {
    uint32_t offset, length, address;
};
struct dfu_mapped {
    const struct dfu_hw *hw;
    uint32_t old_at, old_length, new_at, first, flags, entries; /* first: byte of the chunk */
    uint8_t olds, news, ranges;
    struct dfu_part old[DFU_PARTS_MAX], new[DFU_PARTS_MAX];
    uint32_t range[DFU_PARTS_MAX][2]; /* of addresses that are known: first, size */
    uint32_t index[DFU_ENTRIES_MAX / DFU_TABLE_BLOCK], block, entry[DFU_TABLE_BLOCK][2];
    uint32_t carries[DFU_IMAGE_MAX / DFU_SECTOR / 32 + 1]; /* bit k: an instruction reaches into page k of the image, in this chunk */
    int failed;                   /* the flash, while a page was made */
    uint32_t cached, made;        /* the page of the view that cache holds, its neighbourhood around it; made up to here */
    uint8_t cache[DFU_VIEW_BEFORE + DFU_VIEW_PAGE + 100];
};

struct dfu_chunk {
    uint32_t number, page, pages, crc, length;
    const uint8_t *payload;
};

struct dfu_crash { /* what the reset left behind */
    uint32_t reason, store0, store6;
    uint32_t *sram; /* where to look for an exception frame, which is then marked as seen; NULL: nowhere */
    uint32_t sram_address, sram_words;
};

struct dfu_target { /* an installation under way */
    bool active, skip;
    uint8_t slot, kind;
    uint32_t next, page, value, base_length;
    uint32_t behind; /* the byte of the image that stands behind the base in the prefix */
    struct dfu_envelope envelope;
};

struct dfu_boot {
    const struct dfu_hw *hw;
    uint8_t *sector; /* one sector of scratch */
    uint8_t *chunk;  /* DFU_CHUNK_MAX */
    struct dfu_zstd *zstd;
    struct dfu_mapped *mapped;
    struct dfu_state state;
    bool known; /* the state was read */
    bool blind; /* a sector of its log was not: nothing newer may be overwritten */
    struct dfu_keys keys;
    bool open, locked; /* no key at all; the key log cannot be read */
    struct dfu_image image;
    struct dfu_target target;
    uint8_t reason; /* why recovery */
};

uint32_t dfu_crc32(uint32_t value, const void *data, uint32_t length);

/* log.c */
struct dfu_log {
    uint32_t offset, magic;
    uint16_t size;
    uint8_t sectors;
};
struct dfu_found {
    uint32_t place; /* of the newest record, from the log's first byte */
    bool any;       /* there is one */
    bool unread;    /* the flash refused to read a sector: there may be a newer one */
};
#define DFU_ANY_SEQ 0xffffffffu
bool dfu_blank(struct dfu_boot *b, uint32_t offset, uint32_t length);
struct dfu_found dfu_log_newest(struct dfu_boot *b, const struct dfu_log *log, void *record);
/* record: its seq is that of the record which it follows, 0 for none, DFU_ANY_SEQ for whichever is the newest. DFU_OK: the record
 * was read back, and is the newest. DFU_E_FLASH: nothing is lost; what was the newest still is, or the new one already. */
int dfu_log_append(struct dfu_boot *b, const struct dfu_log *log, void *record);
extern const struct dfu_log dfu_state_log, dfu_keys_log, dfu_diag_log;

int dfu_envelope_read(struct dfu_envelope *e);
bool dfu_ed25519_verify(const uint8_t key[32], const uint8_t signature[64], const uint8_t *context, uint32_t context_length,
                        const uint8_t *message, uint32_t length);
void dfu_keys_load(struct dfu_boot *b);
int dfu_keys_judge(struct dfu_boot *b, const struct dfu_envelope *e, uint8_t *key);
int dfu_keys_rotate(struct dfu_boot *b, const struct dfu_image *image);
void dfu_key_id(const struct dfu_hw *hw, const uint8_t key[32], uint8_t id[8]);

void dfu_trailer_read(struct dfu_boot *b, uint8_t slot, struct dfu_envelope *e);
int dfu_digest(struct dfu_boot *b, uint32_t offset, uint32_t length, uint8_t digest[32]);
int dfu_judge(struct dfu_boot *b, uint8_t slot, struct dfu_image *image);

int dfu_chunk_parse(const uint8_t *data, uint32_t length, struct dfu_chunk *chunk, uint32_t *used);
int dfu_zstd_decode(struct dfu_zstd *z, const uint8_t *source, uint32_t length, uint32_t size, const struct dfu_window *w);

int dfu_mapped_table(struct dfu_mapped *m, const uint8_t *data, uint32_t length, uint32_t size);
int dfu_mapped_view(struct dfu_mapped *m, uint32_t position, uint8_t *buffer, uint32_t length);
int dfu_mapped_form(struct dfu_mapped *m, uint32_t position, uint8_t *buffer, uint32_t length);
void dfu_mapped_back(struct dfu_mapped *m, uint32_t page, uint8_t *data, uint32_t length);
int dfu_sector_write(const struct dfu_hw *hw, uint32_t at, uint8_t *data, uint32_t length);

int dfu_install_begin(struct dfu_boot *b, uint8_t slot, uint8_t kind, const uint8_t base[32]); /* b->target.envelope is set */
int dfu_install_chunk(struct dfu_boot *b, const uint8_t *data, uint32_t length, uint32_t *used);
int dfu_install_finish(struct dfu_boot *b);
int dfu_install_stage(struct dfu_boot *b);

/* say.c */
void dfu_say(struct dfu_boot *b, const char *what, int number); /* number < 0: none */
void dfu_say_error(struct dfu_boot *b, const char *what, int slot, int error);

/* diag.c */
#define DFU_MARK_UNCONFIRMED 0xdf0c0002u
void dfu_diag_append(struct dfu_boot *b, uint8_t type, uint8_t slot, uint32_t cause, const struct dfu_crash *crash);
bool dfu_is_crash(const struct dfu_crash *crash, uint32_t *cause);

/* state.c */
void dfu_state_load(struct dfu_boot *b);
void dfu_state_trial(struct dfu_state *s, uint8_t slot, bool previous);
int dfu_state_append(struct dfu_boot *b);

/* Decide what runs: true and b->image, or false: nothing can be booted. */
bool dfu_boot(struct dfu_boot *b, const struct dfu_crash *crash);
/* Serve the recovery line until a host says boot; without_end: also after a minute of silence. */
void dfu_recover(struct dfu_boot *b, bool without_end);
#endif
