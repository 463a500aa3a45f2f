"""Files of an application's pack as Python reads them, and its folders' content. Loaded when an application opens the first one.

A file is read from flash as it is asked for: it may be larger than the heap.
"""

import struct

DIRECTORY, FILE = 0x4000, 0x8000
LINE = 64  # bytes that a line is looked for in at a time


class File:
    """What open() gives for "r" and "rb": read, readinto, readline, iteration, seek, tell, close, with. Text is UTF-8; its positions and
    sizes count bytes, but no character is cut."""

    def __init__(self, source, first, size, text):
        self.source, self.first, self.size, self.text, self.at = source, first, size, text, 0

    def readinto(self, buffer):
        view = memoryview(buffer)[: max(0, self.size - self.at)]
        self.source.seek(self.first + self.at)
        n = self.source.readinto(view)
        self.at += n
        return n

    def _take(self, size):
        data = bytearray(max(0, min(size, self.size - self.at)))
        self.readinto(data)
        return data

    def _whole(self, data):
        if not self.text:
            return bytes(data)
        while self.at < self.size:
            byte = self._take(1)
            if byte[0] & 0xC0 != 0x80:
                self.at -= 1
                break
            data += byte
        return data.decode()

    def read(self, size=-1):
        left = self.size - self.at
        return self._whole(self._take(left if size is None or size < 0 else size))

    def readline(self, size=-1):
        line = bytearray()
        while self.at < self.size and (size < 0 or len(line) < size):
            piece = self._take(LINE if size < 0 else min(LINE, size - len(line)))
            end = piece.find(b"\n") + 1
            if end:
                self.at -= len(piece) - end
                line += piece[:end]
                break
            line += piece
        return line.decode() if self.text else bytes(line)

    def readlines(self):
        return list(self)

    def __iter__(self):
        return self

    def __next__(self):
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def seek(self, offset, whence=0):
        at = offset + (0, self.at, self.size)[whence]
        if at < 0:
            raise OSError(22)
        self.at = min(at, self.size)
        return self.at

    def tell(self):
        return self.at

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *how):
        pass


def listed(index, path):
    """Yield what os.ilistdir() does for one folder of a pack."""
    folder = path.strip("/")
    folder = folder + "/" if folder else ""
    seen = set()
    at = 0
    while at < len(index):
        end = index.find(b"\0", at + 1)
        name = index[at + 1 : end].decode()
        size = struct.unpack_from("<I", index, end + 5)[0]
        at = end + 9
        if name.startswith(folder):
            first, below, _ = name[len(folder) :].partition("/")
            if first not in seen:
                seen.add(first)
                yield (first, DIRECTORY, 0) if below else (first, FILE, 0, size)
