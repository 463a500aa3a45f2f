# Runs on MicroPython and CPython: reads the vectors as a device does; prints what is wrong, then how many there were.
import binascii
import hashlib
import json
import sys
import time

if not hasattr(time, "ticks_ms"):
    time.ticks_ms, time.ticks_diff = lambda: int(time.monotonic() * 1000), lambda after, before: after - before
sys.path.insert(0, sys.argv[1])
from dfu.chunk import chunk_head
from dfu.ed25519 import verify
from dfu.flash import crc32
from dfu.manifest import read
from dfu.mapped import VIEW, Mapped
from dfu.pack import PackError, pack, unpack
from dfu.table import load as table_load, table_of
from dfu.zstd import PAGE, Decoder, ZstdError

if len(sys.argv) > 3:
    sys.path.insert(0, sys.argv[3])
    import word32check

    word32check.install()
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

    for n in decoder.decode(raw, start, end, known, length, reader):
        reader.data.extend(decoder.page[:n])
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
    m = read(envelope)
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


class Part:
    """esp32.Partition over bytes, as far as reading goes."""

    def __init__(self, data):
        self.data = bytearray(data)

    def readblocks(self, block, buffer, offset=0):
        at = block * PAGE + offset
        if at + len(buffer) > len(self.data):
            raise ZstdError("read of %d at %d of %d" % (len(buffer), at, len(self.data)))
        buffer[:] = memoryview(self.data)[at : at + len(buffer)]


def mapped_of(part, size, data, new_size, image):
    for loaded in table_load(part, size, data, new_size):
        pass
    return Mapped(part, size, loaded, new_size, image)


def view_of(m, size):
    out = bytearray(size)
    # Backwards and in pieces that lie over borders: pages are made alone.
    for at in range((size - 1) // 700 * 700, -1, -700):
        m.read(at, out, at, min(700, size - at))
    # Forwards a page is gone on with, from wherever in an instruction it ended.
    again = bytearray(size)
    at = 0
    for n in (1, 5, 90, 333) * size:
        m.read(at, again, at, min(n, size - at))
        at = min(size, at + n)
        if at == size:
            break
    check(again == out, "the view in pieces")
    return bytes(out)


mapped = load("mapped.json")
for vector in mapped["views"]:
    old = binascii.unhexlify(vector["old"])
    m = mapped_of(Part(old), len(old), binascii.unhexlify(vector["table"]), len(old), None)
    check(view_of(m, len(old)) == binascii.unhexlify(vector["view"]), vector["name"])
for package in mapped["packages"]:
    old, size = binascii.unhexlify(package["base"]), package["size"]
    image = Part(bytes(size + PAGE))
    m = mapped_of(Part(old), len(old), binascii.unhexlify(package["table"]), size, image)
    view = view_of(m, len(old))
    check([crc32(view[i : i + VIEW]) for i in range(0, len(view), VIEW)] == package["view_crc"], package["name"] + " view")
    forms = {}
    # Chunks in any order, here the last one first, if they need not know what is before them.
    for raw in package["chunks"] if m.history else reversed(package["chunks"]):
        raw = binascii.unhexlify(raw)
        number, page, pages, crc, start, end = chunk_head(raw, len(raw))
        known = m.begin(page * PAGE)
        value = 0
        if not number:
            table, start = table_of(raw, start, end, decoder)
            check(binascii.hexlify(table).decode() == package["table"], package["name"] + " table")
            value = crc32(table)

        if pages:
            for n in decoder.decode(raw, start, end, known, min(size - page * PAGE, pages * PAGE), m):
                if not n:
                    continue
                forms[page] = crc32(memoryview(decoder.page)[:n])
                m.back(decoder.page, page * PAGE, n)
                image.data[page * PAGE : page * PAGE + n] = decoder.page[:n]
                value = crc32(memoryview(decoder.page)[:n], value)
                page += 1
        check(value == crc, package["name"] + " crc")
        # What a match reads that reaches back to pages which are written: their absolute form, made anew.
        first = chunk_head(raw, len(raw))[1]
        for at in range(first, page):
            again = bytearray(min(PAGE, size - at * PAGE))
            for low in range((len(again) - 1) // 300 * 300, -1, -300):
                m.read(known + (at - first) * PAGE + low, again, low, min(300, len(again) - low))
            check(crc32(again) == forms[at], package["name"] + " again")
    check([forms[page] for page in sorted(forms)] == package["form_crc"], package["name"] + " form")
    digest = hashlib.sha256(image.data[:size]).digest()
    check(binascii.hexlify(digest).decode() == package["sha256"], package["name"])
old = binascii.unhexlify(mapped["tables"]["old"])
for table in mapped["tables"]["accepted"]:
    check(mapped_of(Part(old), len(old), binascii.unhexlify(table), mapped["tables"]["size"], None), table)
for table in mapped["tables"]["refused"]:
    try:
        mapped_of(Part(old), len(old), binascii.unhexlify(table["hex"]), mapped["tables"]["size"], None)
        check(False, table["why"])
    except PackError:
        check(True, table["why"])
print("checked", COUNT[0])
