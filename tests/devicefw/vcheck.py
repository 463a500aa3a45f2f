# Runs on MicroPython and CPython: reads the vectors as a device does; prints what is wrong, then how many there were.
import binascii
import hashlib
import json
import sys

sys.path.insert(0, sys.argv[1])
from dfu.ed25519 import verify
from dfu.flash import crc32
from dfu.pack import PackError, chunk_head, pack, unpack
from dfu.update import Manifest
from dfu.zstd import PAGE, Decoder, ZstdError

COUNT = [0]


def load(name):
    with open(sys.argv[2] + "/" + name) as file:
        return json.load(file)


def check(right, what):
    COUNT[0] += 1
    if not right:
        print("WRONG", what)


class Reader:
    def __init__(self, base):
        self.data = bytearray(base)

    def read(self, position, buffer, offset, length):
        if position < 0 or position + length > len(self.data):
            raise ZstdError("reader")
        buffer[offset : offset + length] = self.data[position : position + length]


def decode(decoder, raw, size, base, kind, image):
    _number, page, pages, crc, start, end = chunk_head(raw, len(raw))
    length = min(size - page * PAGE, pages * PAGE)
    if length <= 0 or page * PAGE != len(image):
        raise PackError("place")
    reader = Reader(image if kind == 1 else base)
    known = len(reader.data)

    def done(n):
        reader.data.extend(decoder.page[:n])

    decoder.decode(raw, start, end, known, length, reader, done)
    if crc32(reader.data[known:]) != crc:
        raise ZstdError("crc")
    return reader.data[known:]


messages = load("messages.json")
for group in ("status", "command"):
    for vector in messages[group]:
        data = binascii.unhexlify(vector["hex"])
        check(pack(unpack(data)) == data, vector["name"])
manifests = load("manifests.json")
for vector in manifests["manifests"]:
    envelope = binascii.unhexlify(vector["envelope"])
    m = Manifest(envelope)
    check(m.version == vector["value"]["version"], vector["name"])
    public = binascii.unhexlify(manifests["public_key"])
    check(verify(public, b"dfud manifest 1\0" + m.signed, m.signature), vector["name"] + " signature")
    check(not verify(public, b"dfud manifest 1\1" + m.signed, m.signature), vector["name"] + " forged")
chunks = load("chunks.json")
decoder = Decoder()
for package in chunks["packages"]:
    base = binascii.unhexlify(package["base"])
    image = bytearray()
    for raw in package["chunks"]:
        image.extend(decode(decoder, binascii.unhexlify(raw), package["size"], base, package["kind"], image))
    digest = hashlib.sha256(image).digest()
    check(binascii.hexlify(digest).decode() == package["sha256"], package["name"])
for vector in chunks["refused"]["chunks"]:
    try:
        decode(decoder, binascii.unhexlify(vector["hex"]), chunks["refused"]["size"], b"", 1, bytearray())
        check(False, vector["why"])
    except (PackError, ZstdError):
        check(True, vector["why"])
print("checked", COUNT[0])
