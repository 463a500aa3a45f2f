/* Verifying Ed25519 signatures (RFC 8032) with SHA-512 (FIPS 180-4), small: 256-bit numbers in eight words, one loop over
 * the bits of both scalars. Everything here is public, so nothing needs constant time. */
#include "dfu.h"

struct sha512 {
    uint64_t h[8];
    uint8_t block[128];
    uint32_t fill, total;
};

static void compress(struct sha512 *s) {
    static const uint64_t K[80] = {
        0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc, 0x3956c25bf348b538, 0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118, 0xd807aa98a3030242, 0x12835b0145706fbe,
        0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2, 0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235, 0xc19bf174cf692694, 0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
        0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5, 0x983e5152ee66dfab, 0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4, 0xc6e00bf33da88fc2, 0xd5a79147930aa725,
        0x06ca6351e003826f, 0x142929670a0e6e70, 0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed, 0x53380d139d95b3df, 0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
        0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30, 0xd192e819d6ef5218, 0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8, 0x19a4c116b8d2d0c8, 0x1e376c085141ab53,
        0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8, 0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373, 0x682e6ff3d6b2b8a3, 0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
        0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b, 0xca273eceea26619c, 0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178, 0x06f067aa72176fba, 0x0a637dc5a2c898a6,
        0x113f9804bef90dae, 0x1b710b35131c471b, 0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc, 0x431d67c49c100d4c, 0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817};
    uint64_t w[16], v[8];
    memcpy(v, s->h, sizeof v);
    for (uint32_t i = 0; i < 80; i++) {
        uint64_t *x = &w[i & 15];
        if (i < 16) {
            *x = 0;
            for (uint32_t k = 0; k < 8; k++)
                *x = *x << 8 | s->block[8 * i + k];
        } else {
            uint64_t a = w[(i + 1) & 15], b = w[(i + 14) & 15];
            *x += w[(i + 9) & 15] + ((a >> 1 | a << 63) ^ (a >> 8 | a << 56) ^ a >> 7) + ((b >> 19 | b << 45) ^ (b >> 61 | b << 3) ^ b >> 6);
        }
        uint64_t e = v[4], a = v[0];
        uint64_t t = v[7] + ((e >> 14 | e << 50) ^ (e >> 18 | e << 46) ^ (e >> 41 | e << 23)) + ((e & v[5]) ^ (~e & v[6])) + K[i] + *x;
        uint64_t u = ((a >> 28 | a << 36) ^ (a >> 34 | a << 30) ^ (a >> 39 | a << 25)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        for (uint32_t k = 7; k; k--)
            v[k] = v[k - 1];
        v[4] += t;
        v[0] = t + u;
    }
    for (uint32_t k = 0; k < 8; k++)
        s->h[k] += v[k];
}

static void update(struct sha512 *s, const uint8_t *p, uint32_t n) {
    s->total += n;
    while (n--) {
        s->block[s->fill++] = *p++;
        if (s->fill == 128) {
            compress(s);
            s->fill = 0;
        }
    }
}

static void finish(struct sha512 *s, uint8_t out[64]) {
    static const uint8_t one = 0x80, zero = 0;
    uint32_t bits = s->total * 8; /* messages here are below 2 KB */
    update(s, &one, 1);
    while (s->fill != 124)
        update(s, &zero, 1);
    for (uint32_t i = 0; i < 4; i++)
        s->block[124 + i] = (uint8_t)(bits >> (24 - 8 * i));
    compress(s);
    for (uint32_t i = 0; i < 64; i++)
        out[i] = (uint8_t)(s->h[i / 8] >> (56 - 8 * (i & 7)));
}

/* Field elements modulo p = 2^255 - 19, kept below 2^256. */
typedef uint32_t fe[8];
static const fe D2 = {0x26b2f159, 0xebd69b94, 0x8283b156, 0x00e0149a, 0xeef3d130, 0x198e80f2, 0x56dffce7, 0x2406d9dc};
static const fe D = {0x135978a3, 0x75eb4dca, 0x4141d8ab, 0x00700a4d, 0x7779e898, 0x8cc74079, 0x2b6ffe73, 0x52036cee};
static const fe I = {0x4a0ea0b0, 0xc4ee1b27, 0xad2fe478, 0x2f431806, 0x3dfbd7a7, 0x2b4d0099, 0x4fc1df0b, 0x2b832480};
static const fe BX = {0x8f25d51a, 0xc9562d60, 0x9525a7b2, 0x692cc760, 0xfdd6dc5c, 0xc0a4e231, 0xcd6e53fe, 0x216936d3};
static const fe BY = {0x66666658, 0x66666666, 0x66666666, 0x66666666, 0x66666666, 0x66666666, 0x66666666, 0x66666666};
static const fe L = {0x5cf5d3ed, 0x5812631a, 0xa2f79cd6, 0x14def9de, 0, 0, 0, 0x10000000};
static const fe P = {0xffffffed, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x7fffffff};

static void fold(fe o, uint32_t carry) { /* o += 38 * carry, modulo p */
    while (carry) {
        uint64_t v = (uint64_t)carry * 38;
        for (uint32_t i = 0; i < 8; i++) {
            v += o[i];
            o[i] = (uint32_t)v;
            v >>= 32;
        }
        carry = (uint32_t)v;
    }
}

static void mul(fe o, const fe a, const fe b) {
    uint32_t t[16];
    uint64_t v = 0;
    memset(t, 0, sizeof t);
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t carry = 0;
        for (uint32_t j = 0; j < 8; j++) {
            uint64_t x = (uint64_t)a[i] * b[j] + t[i + j] + carry;
            t[i + j] = (uint32_t)x;
            carry = (uint32_t)(x >> 32);
        }
        t[i + 8] = carry;
    }
    for (uint32_t i = 0; i < 8; i++) {
        v += (uint64_t)t[i + 8] * 38 + t[i];
        o[i] = (uint32_t)v;
        v >>= 32;
    }
    fold(o, (uint32_t)v);
}

static void add(fe o, const fe a, const fe b) {
    uint64_t v = 0;
    for (uint32_t i = 0; i < 8; i++) {
        v += (uint64_t)a[i] + b[i];
        o[i] = (uint32_t)v;
        v >>= 32;
    }
    fold(o, (uint32_t)v);
}

/* o = a - b; returns the borrow. */
static uint32_t subtract(uint32_t *o, const uint32_t *a, const uint32_t *b) {
    uint32_t borrow = 0;
    for (uint32_t i = 0; i < 8; i++) {
        uint64_t v = (uint64_t)a[i] - b[i] - borrow;
        o[i] = (uint32_t)v;
        borrow = (uint32_t)(v >> 32) & 1;
    }
    return borrow;
}

static void sub(fe o, const fe a, const fe b) {
    static const fe THIRTY_EIGHT = {38};
    uint32_t borrow = subtract(o, a, b);
    while (borrow)
        borrow = subtract(o, o, THIRTY_EIGHT);
}

static void freeze(fe o) {
    fe t;
    while (!subtract(t, o, P))
        memcpy(o, t, sizeof t);
}

static bool same(const fe a, const fe b) {
    fe x;
    sub(x, a, b);
    freeze(x);
    for (uint32_t i = 1; i < 8; i++)
        x[0] |= x[i];
    return x[0] == 0;
}

/* o = a ^ (2^255 - 19 - 2) for last = 21: the inverse; a ^ ((p - 5) / 8) = 2^252 - 3 for the root. */
static void power(fe o, const fe a, bool root) {
    fe r;
    memcpy(r, a, sizeof r);
    /* both exponents are ones but for the last bits: 2^252 - 3 ends 01, 2^255 - 21 ends 01011 */
    for (int i = root ? 250 : 253; i >= 0; i--) {
        mul(r, r, r);
        if (root ? i != 1 : i != 4 && i != 2)
            mul(r, r, a);
    }
    memcpy(o, r, sizeof r);
}

struct point {
    fe x, y, z, t;
};

/* The complete addition for a = -1 (Hisil, Wong, Carter, Dawson 2008): also doubles, also adds the neutral point. */
static void plus(struct point *o, const struct point *p, const struct point *q) {
    fe a, b, c, d, e, f;
    sub(a, p->y, p->x);
    sub(b, q->y, q->x);
    mul(a, a, b);
    add(b, p->y, p->x);
    add(c, q->y, q->x);
    mul(b, b, c);
    mul(c, p->t, q->t);
    mul(c, c, D2);
    mul(d, p->z, q->z);
    add(d, d, d);
    sub(e, b, a);
    sub(f, d, c);
    add(d, d, c);
    add(b, b, a);
    mul(o->x, e, f);
    mul(o->y, d, b);
    mul(o->t, e, b);
    mul(o->z, f, d);
}

static const fe ZERO = {0}, ONE = {1};

/* The negative of the point that the 32 bytes encode; false: they encode none. */
static bool negative(struct point *o, const uint8_t bytes[32]) {
    fe u, v, w, x;
    uint32_t sign = bytes[31] >> 7;
    memcpy(o->y, bytes, 32);
    o->y[7] &= 0x7fffffff;
    if (!subtract(u, o->y, P))
        return false;
    mul(u, o->y, o->y);
    mul(v, u, D);
    sub(u, u, ONE);
    add(v, v, ONE);
    mul(w, v, v);
    mul(x, w, v); /* v^3 */
    mul(w, x, x);
    mul(w, w, v); /* v^7 */
    mul(w, w, u);
    power(w, w, true);
    mul(x, x, w);
    mul(x, x, u); /* u v^3 (u v^7)^((p-5)/8) */
    mul(w, x, x);
    mul(w, w, v);
    if (!same(w, u)) {
        mul(x, x, I);
        mul(w, x, x);
        mul(w, w, v);
        if (!same(w, u))
            return false;
    }
    freeze(x);
    if (same(x, ZERO) && sign)
        return false;
    if ((x[0] & 1) == sign)
        sub(x, ZERO, x);
    memcpy(o->x, x, 32);
    memcpy(o->z, ONE, 32);
    mul(o->t, o->x, o->y);
    return true;
}

/* r = the 64-byte number modulo L. */
static void reduce(fe r, const uint8_t in[64]) {
    memset(r, 0, sizeof(fe));
    for (int i = 511; i >= 0; i--) {
        fe t;
        for (int k = 7; k; k--)
            r[k] = r[k] << 1 | r[k - 1] >> 31;
        r[0] = r[0] << 1 | (in[i >> 3] >> (i & 7) & 1);
        if (!subtract(t, r, L))
            memcpy(r, t, sizeof t);
    }
}

bool dfu_ed25519_verify(const uint8_t key[32], const uint8_t signature[64], const uint8_t *context, uint32_t context_length,
                        const uint8_t *message, uint32_t length) {
    static const uint64_t START[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                                      0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
    struct sha512 hash;
    struct point table[3], sum; /* B, -A, B - A */
    fe s, k, t;
    uint8_t digest[64];
    memcpy(s, signature + 32, 32);
    if (!subtract(t, s, L) || !negative(&table[1], key))
        return false;
    memcpy(hash.h, START, sizeof START);
    hash.fill = hash.total = 0;
    update(&hash, signature, 32);
    update(&hash, key, 32);
    update(&hash, context, context_length);
    update(&hash, message, length);
    finish(&hash, digest);
    reduce(k, digest);
    memcpy(table[0].x, BX, 32);
    memcpy(table[0].y, BY, 32);
    memcpy(table[0].z, ONE, 32);
    mul(table[0].t, BX, BY);
    plus(&table[2], &table[0], &table[1]);
    memset(&sum, 0, sizeof sum);
    sum.y[0] = sum.z[0] = 1;
    for (int i = 252; i >= 0; i--) {
        uint32_t which = (s[i >> 5] >> (i & 31) & 1) | (k[i >> 5] >> (i & 31) & 1) << 1;
        plus(&sum, &sum, &sum);
        if (which)
            plus(&sum, &sum, &table[which - 1]);
    }
    power(t, sum.z, false);
    mul(sum.x, sum.x, t);
    mul(sum.y, sum.y, t);
    freeze(sum.x);
    freeze(sum.y);
    sum.y[7] |= sum.x[0] << 31;
    return memcmp(sum.y, signature, 32) == 0;
}
