"""Verifying Ed25519 signatures (RFC 8032) with SHA-512 (FIPS 180-4) in plain Python: some 55 million instructions of an ESP32-C3.

Verification handles public values only, so nothing here needs constant time. What makes it quick: constants are not worked out at the
import; both scalars in signed windows of four bits; no T where no addition follows; no inverse by exponentiation.

What takes long is a generator: it yields None so that others have their turn, and at last what it found.
"""

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
# -121665/121666, a root of -1, the base point: RFC 8032, 5.1; a test works them out.
_D = 0x52036cee2b6ffe738cc740797779e89800700a4d4141d8ab75eb4dca135978a3
_I = 0x2b8324804fc1df0b2b4d00993dfbd7a72f431806ad2fe478c4ee1b274a0ea0b0
_X = 0x216936d3cd6e53fec0a4e231fdd6dc5c692cc7609525a7b2c9562d608f25d51a
_Y = 0x6666666666666666666666666666666666666666666666666666666666666658
_M = 0xFFFFFFFFFFFFFFFF
# FIPS 180-4, 4.2.3 and 5.3.5, eight bytes each: as whole numbers they would take eight times the room.
_K = (
    b"\x42\x8a\x2f\x98\xd7\x28\xae\x22\x71\x37\x44\x91\x23\xef\x65\xcd\xb5\xc0\xfb\xcf\xec\x4d\x3b\x2f"
    b"\xe9\xb5\xdb\xa5\x81\x89\xdb\xbc\x39\x56\xc2\x5b\xf3\x48\xb5\x38\x59\xf1\x11\xf1\xb6\x05\xd0\x19"
    b"\x92\x3f\x82\xa4\xaf\x19\x4f\x9b\xab\x1c\x5e\xd5\xda\x6d\x81\x18\xd8\x07\xaa\x98\xa3\x03\x02\x42"
    b"\x12\x83\x5b\x01\x45\x70\x6f\xbe\x24\x31\x85\xbe\x4e\xe4\xb2\x8c\x55\x0c\x7d\xc3\xd5\xff\xb4\xe2"
    b"\x72\xbe\x5d\x74\xf2\x7b\x89\x6f\x80\xde\xb1\xfe\x3b\x16\x96\xb1\x9b\xdc\x06\xa7\x25\xc7\x12\x35"
    b"\xc1\x9b\xf1\x74\xcf\x69\x26\x94\xe4\x9b\x69\xc1\x9e\xf1\x4a\xd2\xef\xbe\x47\x86\x38\x4f\x25\xe3"
    b"\x0f\xc1\x9d\xc6\x8b\x8c\xd5\xb5\x24\x0c\xa1\xcc\x77\xac\x9c\x65\x2d\xe9\x2c\x6f\x59\x2b\x02\x75"
    b"\x4a\x74\x84\xaa\x6e\xa6\xe4\x83\x5c\xb0\xa9\xdc\xbd\x41\xfb\xd4\x76\xf9\x88\xda\x83\x11\x53\xb5"
    b"\x98\x3e\x51\x52\xee\x66\xdf\xab\xa8\x31\xc6\x6d\x2d\xb4\x32\x10\xb0\x03\x27\xc8\x98\xfb\x21\x3f"
    b"\xbf\x59\x7f\xc7\xbe\xef\x0e\xe4\xc6\xe0\x0b\xf3\x3d\xa8\x8f\xc2\xd5\xa7\x91\x47\x93\x0a\xa7\x25"
    b"\x06\xca\x63\x51\xe0\x03\x82\x6f\x14\x29\x29\x67\x0a\x0e\x6e\x70\x27\xb7\x0a\x85\x46\xd2\x2f\xfc"
    b"\x2e\x1b\x21\x38\x5c\x26\xc9\x26\x4d\x2c\x6d\xfc\x5a\xc4\x2a\xed\x53\x38\x0d\x13\x9d\x95\xb3\xdf"
    b"\x65\x0a\x73\x54\x8b\xaf\x63\xde\x76\x6a\x0a\xbb\x3c\x77\xb2\xa8\x81\xc2\xc9\x2e\x47\xed\xae\xe6"
    b"\x92\x72\x2c\x85\x14\x82\x35\x3b\xa2\xbf\xe8\xa1\x4c\xf1\x03\x64\xa8\x1a\x66\x4b\xbc\x42\x30\x01"
    b"\xc2\x4b\x8b\x70\xd0\xf8\x97\x91\xc7\x6c\x51\xa3\x06\x54\xbe\x30\xd1\x92\xe8\x19\xd6\xef\x52\x18"
    b"\xd6\x99\x06\x24\x55\x65\xa9\x10\xf4\x0e\x35\x85\x57\x71\x20\x2a\x10\x6a\xa0\x70\x32\xbb\xd1\xb8"
    b"\x19\xa4\xc1\x16\xb8\xd2\xd0\xc8\x1e\x37\x6c\x08\x51\x41\xab\x53\x27\x48\x77\x4c\xdf\x8e\xeb\x99"
    b"\x34\xb0\xbc\xb5\xe1\x9b\x48\xa8\x39\x1c\x0c\xb3\xc5\xc9\x5a\x63\x4e\xd8\xaa\x4a\xe3\x41\x8a\xcb"
    b"\x5b\x9c\xca\x4f\x77\x63\xe3\x73\x68\x2e\x6f\xf3\xd6\xb2\xb8\xa3\x74\x8f\x82\xee\x5d\xef\xb2\xfc"
    b"\x78\xa5\x63\x6f\x43\x17\x2f\x60\x84\xc8\x78\x14\xa1\xf0\xab\x72\x8c\xc7\x02\x08\x1a\x64\x39\xec"
    b"\x90\xbe\xff\xfa\x23\x63\x1e\x28\xa4\x50\x6c\xeb\xde\x82\xbd\xe9\xbe\xf9\xa3\xf7\xb2\xc6\x79\x15"
    b"\xc6\x71\x78\xf2\xe3\x72\x53\x2b\xca\x27\x3e\xce\xea\x26\x61\x9c\xd1\x86\xb8\xc7\x21\xc0\xc2\x07"
    b"\xea\xda\x7d\xd6\xcd\xe0\xeb\x1e\xf5\x7d\x4f\x7f\xee\x6e\xd1\x78\x06\xf0\x67\xaa\x72\x17\x6f\xba"
    b"\x0a\x63\x7d\xc5\xa2\xc8\x98\xa6\x11\x3f\x98\x04\xbe\xf9\x0d\xae\x1b\x71\x0b\x35\x13\x1c\x47\x1b"
    b"\x28\xdb\x77\xf5\x23\x04\x7d\x84\x32\xca\xab\x7b\x40\xc7\x24\x93\x3c\x9e\xbe\x0a\x15\xc9\xbe\xbc"
    b"\x43\x1d\x67\xc4\x9c\x10\x0d\x4c\x4c\xc5\xd4\xbe\xcb\x3e\x42\xb6\x59\x7f\x29\x9c\xfc\x65\x7e\x2a"
    b"\x5f\xcb\x6f\xab\x3a\xd6\xfa\xec\x6c\x44\x19\x8c\x4a\x47\x58\x17"
)
_H = (
    b"\x6a\x09\xe6\x67\xf3\xbc\xc9\x08\xbb\x67\xae\x85\x84\xca\xa7\x3b\x3c\x6e\xf3\x72\xfe\x94\xf8\x2b"
    b"\xa5\x4f\xf5\x3a\x5f\x1d\x36\xf1\x51\x0e\x52\x7f\xad\xe6\x82\xd1\x9b\x05\x68\x8c\x2b\x3e\x6c\x1f"
    b"\x1f\x83\xd9\xab\xfb\x41\xbd\x6b\x5b\xe0\xcd\x19\x13\x7e\x21\x79"
)


def _sha512(data):
    h = [int.from_bytes(_H[i : i + 8], "big") for i in range(0, 64, 8)]
    n = len(data)
    data = bytes(data) + b"\x80" + bytes((111 - n) % 128) + (8 * n).to_bytes(16, "big")
    for at in range(0, len(data), 128):
        w = [int.from_bytes(data[i : i + 8], "big") for i in range(at, at + 128, 8)]
        a, b, c, d, e, f, g, z = h
        for i in range(80):
            j = i & 15
            # A word twice in a row holds each of its rotations.
            if i >= 16:
                x, y = w[i - 15 & 15], w[i - 2 & 15]
                x2, y2 = x | x << 64, y | y << 64
                s0 = (x2 >> 1 ^ x2 >> 8 ^ x >> 7) & _M
                w[j] = (w[j] + s0 + w[i - 7 & 15] + ((y2 >> 19 ^ y2 >> 61 ^ y >> 6) & _M)) & _M
            x2, y2 = e | e << 64, a | a << 64
            t = z + ((x2 >> 14 ^ x2 >> 18 ^ x2 >> 41) & _M) + (g ^ e & (f ^ g)) + int.from_bytes(_K[8 * i : 8 * i + 8], "big") + w[j]
            s0 = (y2 >> 28 ^ y2 >> 34 ^ y2 >> 39) & _M
            z, g, f, e = g, f, e, (d + t) & _M
            d, c, b, a = c, b, a, (t + s0 + ((a | b) & c | a & b)) & _M
        h = [(x + y) & _M for x, y in zip(h, (a, b, c, d, e, f, g, z))]
        yield None
    yield b"".join(x.to_bytes(8, "big") for x in h)


def sha512(data):
    return _last(_sha512(data))


def _last(steps):
    for found in steps:
        pass
    return found


def _cached(p):
    """Return a point as _add() takes it: Y-X, Y+X, 2dT, 2Z."""
    x, y, z, e, h = p
    return y - x, y + x, e * h % _P * 2 * _D % _P, 2 * z


def _add(p, q):
    """Return p + q. Points are X, Y, Z and two numbers whose product is T. q: cached."""
    x, y, z, e, h = p
    a, b = (y - x) * q[0] % _P, (y + x) * q[1] % _P
    c, d = e * h % _P * q[2] % _P, z * q[3] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e, h


def _double(p):
    x, y, z = p[0], p[1], p[2]
    a, b = x * x % _P, y * y % _P
    e, g, h = 2 * x * y % _P, b - a, -a - b
    f = g - 2 * z * z % _P
    return e * f % _P, g * h % _P, f * g % _P, e, h


def _odd(p):
    """Return 1, 3, 5 and 7 times p, cached."""
    found = [_cached(p)]
    twice = _cached(_double(p))
    for _ in range(3):
        p = _add(p, twice)
        found.append(_cached(p))
    return found


def _digits(k):
    """Return k in binary digits that are 0 or odd, from -7 to 7, each as 8 more; behind one that is not 0 there are three that are."""
    found = bytearray(b"\x08" * 256)
    i = 0
    while k:
        if k & 1:
            d = k & 15
            if d > 7:
                d -= 16
            k -= d
            found[i] = 8 + d
        k >>= 1
        i += 1
    return found


def _inverse(z):
    a, b, x, y = _P, z % _P, 0, 1
    while b:
        q = a // b
        a, b = b, a - q * b
        x, y = y, x - q * y
    return x % _P


def _root(z):
    """Find z ** ((p - 5) / 8), which is 2 ** 252 - 3: by doubling how many ones there are, 250 of them and then 01."""
    x, n = z, 1
    for one in b"\1\1\1\1\0\1\0":
        x = pow(x, 1 << n, _P) * x % _P
        n *= 2
        if one:
            x = x * x % _P * z % _P
            n += 1
        yield None
    yield pow(x, 4, _P) * z % _P


def _point(data):
    return _last(_found(data))


def _found(data):
    """Find x and y of a point as RFC 8032 writes it, or None."""
    y = int.from_bytes(data, "little")
    sign = y >> 255
    y &= (1 << 255) - 1
    if y >= _P:
        yield None
        return
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    for root in _root(u * pow(v, 7, _P) % _P):
        yield None
    x = u * pow(v, 3, _P) * root % _P
    if v * x * x % _P != u:
        x = x * _I % _P
        if v * x * x % _P != u:
            return
    if not x and sign:
        return
    if x & 1 != sign:
        x = _P - x
    yield x, y


def verify(key, message, signature):
    """Say whether `signature` (64 bytes) is `key`'s (32 bytes) over `message`."""
    return _last(verifying(key, message, signature))


def verifying(key, message, signature):
    """As verify(), in steps of less than 30 ms on an ESP32-C3."""
    yield False
    if len(key) != 32 or len(signature) != 64:
        return
    for a in _found(key):
        yield False
    s = int.from_bytes(signature[32:], "little")
    if a is None or s >= _L:
        return
    for k in _sha512(bytes(signature[:32]) + bytes(key) + bytes(message)):
        yield False
    k = int.from_bytes(k, "little") % _L
    # s*B - k*A must be R; both products at once, digit by digit.
    x, y = _P - a[0], a[1]
    sums = ((_digits(s), _odd((_X, _Y, 1, _X, _Y))), (_digits(k), _odd((x, y, 1, x, y))))
    yield False
    r = None
    for i in range(255, -1, -1):
        if i % 8 == 0:
            yield False
        if r is not None:
            r = _double(r)
        for digits, odd in sums:
            d = digits[i] - 8
            if d:
                r = r or (0, 1, 1, 0, 1)
                q = odd[abs(d) >> 1]
                r = _add(r, q if d > 0 else (q[1], q[0], -q[2], q[3]))
    if r is None:
        r = (0, 1, 1)
    z = _inverse(r[2])
    x, y = r[0] * z % _P, r[1] * z % _P
    yield (y | (x & 1) << 255).to_bytes(32, "little") == bytes(signature[:32])
