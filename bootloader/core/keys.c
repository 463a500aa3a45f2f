/* The key log: who may sign, and how that changes. ../FORMAT.md, "Keys". */
#include "dfu.h"

static const uint8_t CONTEXT[16] = "dfud manifest 1"; /* with the 0 at its end */

void dfu_key_id(const struct dfu_hw *hw, const uint8_t key[32], uint8_t id[8]) {
    uint8_t digest[32];
    hw->sha_start(hw->ctx);
    hw->sha_update(hw->ctx, key, 32);
    hw->sha_finish(hw->ctx, digest);
    memcpy(id, digest, 8);
}

static bool revoked(const struct dfu_keys *keys, const uint8_t id[8]) {
    for (uint32_t i = 0; i < keys->revoked; i++)
        if (!memcmp(keys->revoked_id[i], id, 8))
            return true;
    return false;
}

/* b->keys; b->open: there never was a key; b->locked: nothing can be trusted. */
void dfu_keys_load(struct dfu_boot *b) {
    b->open = b->locked = false;
    if (!dfu_log_newest(b, &dfu_keys_log, &b->keys).any) {
        memset(&b->keys, 0, sizeof b->keys);
        b->open = dfu_blank(b, DFU_KEYS_AT, dfu_keys_log.sectors * DFU_SECTOR);
        b->locked = !b->open;
    } else if (b->keys.count > 4 || b->keys.revoked > 11) {
        b->locked = true;
    }
}

/* DFU_OK if a trusted key signed the envelope, or if the device is open; *key: which, ff: none. */
int dfu_keys_judge(struct dfu_boot *b, const struct dfu_envelope *e, uint8_t *key) {
    uint8_t id[8];
    *key = 0xff;
    if (b->open)
        return DFU_OK;
    if (b->locked || !e->key)
        return DFU_E_SIGNATURE;
    for (uint8_t i = 0; i < b->keys.count; i++) {
        dfu_key_id(b->hw, b->keys.key[i], id);
        if (memcmp(id, e->key, 8) || revoked(&b->keys, id))
            continue;
        if (!dfu_ed25519_verify(b->keys.key[i], e->signature, CONTEXT, sizeof CONTEXT, e->signed_bytes, e->signed_length))
            return DFU_E_SIGNATURE;
        *key = i;
        return DFU_OK;
    }
    return DFU_E_SIGNATURE;
}

/* Do what the manifest of the confirmed image says about keys, if that is not done yet. */
int dfu_keys_rotate(struct dfu_boot *b, const struct dfu_image *image) {
    const struct dfu_manifest *m = &image->envelope.manifest;
    struct dfu_keys keys = b->keys;
    uint8_t own[8], id[8];
    bool changed = false;
    if (b->open || b->locked || image->key == 0xff)
        return DFU_OK;
    memcpy(own, image->envelope.key, 8);
    for (uint32_t i = 0; i < m->revokes; i++)
        if (memcmp(m->revoke[i], own, 8) && !revoked(&keys, m->revoke[i]) && keys.revoked < 11) {
            memcpy(keys.revoked_id[keys.revoked++], m->revoke[i], 8);
            changed = true;
        }
    for (uint8_t i = 0; i < keys.count;) { /* a revoked key leaves its place */
        dfu_key_id(b->hw, keys.key[i], id);
        if (!revoked(&keys, id)) {
            i++;
            continue;
        }
        for (uint8_t k = i; k + 1 < keys.count; k++)
            memcpy(keys.key[k], keys.key[k + 1], 32);
        keys.development = (uint8_t)((keys.development & ((1u << i) - 1)) | (keys.development >> 1 & (0xffu << i)));
        memset(keys.key[--keys.count], 0, 32);
        changed = true;
    }
    for (uint32_t i = 0; i < m->adds; i++) {
        bool there = false;
        for (uint32_t k = 0; k < keys.count; k++)
            there |= !memcmp(keys.key[k], m->add[i], 32);
        dfu_key_id(b->hw, m->add[i], id);
        if (there || keys.count == 4 || revoked(&keys, id))
            continue;
        memcpy(keys.key[keys.count++], m->add[i], 32);
        changed = true;
    }
    if (!changed)
        return DFU_OK;
    dfu_say(b, "the set of keys changes; trusted now: ", keys.count);
    b->keys = keys;
    return dfu_log_append(b, &dfu_keys_log, &b->keys);
}
