"""Files in one: the agent's modules in a file, for in a file system of 4096-byte blocks 25 small ones take twice the room; the
application in a bank of flash.

Pack mounts it, read-only, so that import finds them as if they were files. Format: "DFUP", u16 length of the index; the index, for each
file 00, its path, 00, u32 offset, u32 size; the files. All little endian.
"""

import io
import struct

DIRECTORY, FILE = 0x4000, 0x8000
ENOENT, EROFS = 2, 30
CLOSE = 4  # ioctl of a stream


class _Flash:
    """A partition, as far as a pack reads it like a file."""

    def __init__(self, part):
        self.part, self.at = part, 0

    def seek(self, at):
        self.at = at

    def readinto(self, buffer):
        if buffer:
            self.part.readblocks(self.at // 4096, buffer, self.at % 4096)
        self.at += len(buffer)
        return len(buffer)

    def read(self, size):
        buffer = bytearray(size)
        self.readinto(buffer)
        return bytes(buffer)

    def close(self):
        pass


class Piece(io.IOBase):
    """A file of a pack, as import reads it."""

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
    """What vfs.mount takes. source: a path, or a partition. Holds the file open, and the index, some 600 bytes for 25 files."""

    def __init__(self, source):
        self.file = _Flash(source) if hasattr(source, "readblocks") else open(source, "rb")
        magic, size = struct.unpack("<4sH", self.file.read(6))
        if magic != b"DFUP":
            raise ValueError("%s: no pack of files" % source)
        self.index = self.file.read(size)

    def mount(self, readonly, mkfs):
        pass

    def umount(self):
        self.file.close()

    def chdir(self, path):
        self.stat(path)

    def _find(self, path):
        name = b"\0" + path.strip("/").encode() + b"\0"
        at = self.index.find(name)
        return struct.unpack_from("<II", self.index, at + len(name)) if at >= 0 else None

    def stat(self, path):
        found = self._find(path)
        if found:
            return (FILE, 0, 0, 0, 0, 0, found[1], 0, 0, 0)
        if path.strip("/") == "" or self.index.find(b"\0" + path.strip("/").encode() + b"/") >= 0:
            return (DIRECTORY, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        raise OSError(ENOENT)

    def open(self, path, mode):
        found = self._find(path)
        if "w" in mode or "a" in mode or "+" in mode:
            raise OSError(EROFS)
        if not found:
            raise OSError(ENOENT)
        if path.endswith(".mpy") or path.endswith(".py"):
            return Piece(self.file, *found)
        from dfu.packfile import File

        return File(self.file, *found, "b" not in mode)

    def ilistdir(self, path):
        from dfu.packfile import listed

        return listed(self.index, path)

    def remove(self, path):
        raise OSError(EROFS)

    mkdir = rmdir = remove
