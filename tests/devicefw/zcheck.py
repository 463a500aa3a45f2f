# Runs on MicroPython and CPython: decodes cases of a JSON file; prints one line a case.
import binascii
import json
import sys
import time

if not hasattr(time, "ticks_ms"):
    time.ticks_ms, time.ticks_diff = lambda: int(time.monotonic() * 1000), lambda after, before: after - before

sys.path.insert(0, sys.argv[1])
from dfu.zstd import VIPER, Decoder, ZstdError  # noqa: E402


class Reader:
    def __init__(self, data):
        self.data = bytearray(data)

    def read(self, position, buffer, offset, length):
        if position < 0 or position + length > len(self.data):
            raise ZstdError("reader asked for %d at %d of %d" % (length, position, len(self.data)))
        buffer[offset : offset + length] = self.data[position : position + length]


print("viper" if VIPER else "plain", sys.implementation.name)
decoder = Decoder()
with open(sys.argv[2]) as file:
    for line in file:
        case = json.loads(line)
        reader = Reader(binascii.unhexlify(case["prefix"]))
        prefix = len(reader.data)
        frame = binascii.unhexlify(case["frame"])

        pages = 0
        try:
            for n in decoder.decode(frame, 0, len(frame), prefix, case["size"], reader):
                reader.data.extend(decoder.page[:n])
                pages += n > 0
            assert pages == (case["size"] + 4095) // 4096, "it gives every page out"
            print(binascii.crc32(reader.data[prefix:]) & 0xFFFFFFFF)
        except ZstdError as error:
            print("error", error)
