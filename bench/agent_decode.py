# Runs on MicroPython: decodes a package with the agent's code into memory, checks it, prints the milliseconds that decoding took.
# Arguments: directory with the package `dfu`, file of lengths (u32: base, image, kind, chunks; then each chunk's) and bytes.
import binascii
import hashlib
import struct
import sys
import time

sys.path.insert(0, sys.argv[1])
from dfu.mapped import Mapped
from dfu.table import load, table_of
from dfu.chunk import chunk_head
from dfu.zstd import PAGE, Decoder

with open(sys.argv[2], "rb") as file:
    base_size, size, kind, count = struct.unpack("<4I", file.read(16))
    lengths = struct.unpack("<%dI" % count, file.read(4 * count))
    base = bytearray(file.read(base_size))
    chunks = [file.read(n) for n in lengths]
image = bytearray(size + PAGE)


class Part:
    def __init__(self, data):
        self.data = data

    def readblocks(self, block, buffer, offset=0):
        at = block * PAGE + offset
        buffer[:] = memoryview(self.data)[at : at + len(buffer)]


class Prefix:
    """Kinds 1 and 2: the old image, or the new one so far, and the chunk's own output behind it."""

    def __init__(self, first):
        self.first = first

    def read(self, position, buffer, offset, length):
        if kind == 2 and position < base_size:
            n = min(length, base_size - position)
            buffer[offset : offset + n] = memoryview(base)[position : position + n]
            position += n
            offset += n
            length -= n
        at = position - (base_size - self.first if kind == 2 else 0)
        buffer[offset : offset + length] = memoryview(image)[at : at + length]


decoder, mapped = Decoder(), None
start = time.ticks_us()
for raw in chunks:
    number, page, pages, _, first, end = chunk_head(raw, len(raw))
    if kind == 3 and not number:
        data, first = table_of(raw, first, end, decoder)
        for loaded in load(Part(base), base_size, data, size):
            pass
        mapped = Mapped(Part(base), base_size, loaded, size, Part(image))
    if first == end:
        continue
    at = page * PAGE
    reader, known = (mapped, mapped.begin(at)) if mapped else (Prefix(at), base_size if kind == 2 else at)

    for n in decoder.decode(raw, first, end, known, min(size - at, pages * PAGE), reader):
        if n:
            if mapped:
                mapped.back(decoder.page, at, n)
            image[at : at + n] = memoryview(decoder.page)[:n]
            at += n
print(time.ticks_diff(time.ticks_us(), start), binascii.hexlify(hashlib.sha256(memoryview(image)[:size]).digest()).decode())
