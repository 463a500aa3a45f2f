"""The agent's modules in one file: in a file system of 4096-byte blocks, 25 small files take twice the room of one.

Pack mounts it, read-only, so that import finds them as if they were files. Format: "DFUP", u16 length of the index; the index, for each
file 00, its path, 00, u32 offset, u32 size; the files. All little endian.
"""

import io
import struct

DIRECTORY, FILE = 0x4000, 0x8000
ENOENT = 2
CLOSE = 4  # ioctl of a stream


class _Piece(io.IOBase):
    def __init__(self, file, at, size):
        self.file, self.at, self.left = file, at, size

    def readinto(self, buffer):
        view = memoryview(buffer)[: self.left]
        self.file.seek(self.at)
        size = self.file.readinto(view)
        self.at += size
        self.left -= size
        return size

    def ioctl(self, operation, argument):
        return 0 if operation == CLOSE else -1


class Pack:
    """What vfs.mount takes. Holds the file open, and the index, some 600 bytes."""

    def __init__(self, path):
        self.file = open(path, "rb")
        magic, size = struct.unpack("<4sH", self.file.read(6))
        if magic != b"DFUP":
            raise ValueError("%s: no pack of modules" % path)
        self.index = self.file.read(size)

    def mount(self, readonly, mkfs):
        pass

    def umount(self):
        self.file.close()

    def _find(self, path):
        name = b"\0" + path.strip("/").encode() + b"\0"
        at = self.index.find(name)
        return struct.unpack_from("<II", self.index, at + len(name)) if at >= 0 else None

    def stat(self, path):
        found = self._find(path)
        if found:
            return (FILE, 0, 0, 0, 0, 0, found[1], 0, 0, 0)
        if self.index.find(b"\0" + path.strip("/").encode() + b"/") >= 0:
            return (DIRECTORY, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        raise OSError(ENOENT)

    def open(self, path, mode):
        found = self._find(path)
        if not found or "w" in mode:
            raise OSError(ENOENT)
        return _Piece(self.file, *found)
