"""A serial line with `dfuctl bridge` at its other end: what dfu.transport asks for, as docs/serial.md describes it.

The device alone asks: a request, then its answer piece by piece, each piece as often as it takes. So nothing is sent that nobody has room
for. Text on the line, of the boot ROM or an application's prints, stands between frames and is passed over.
"""

import asyncio
import binascii
import os
from time import ticks_add, ticks_diff, ticks_ms

from dfu.errors import Denied, Gone, TransportError
from dfu.pack import pack

PIECE = 512  # bytes of an answer in one frame
CONSOLE_PIECE = 96  # stock MicroPython keeps 260 bytes of its console's input
ROOM = 2048  # of a UART's own buffer: a piece of which every byte is escaped
WRITTEN = 256  # bytes at once: the application has its turn in between
ANSWER_MS, ANSWER_LONGEST_MS = 500, 4000  # how long the bridge may take, twice as long each time
ALIVE_MS = 5000  # while the server takes its time: look whether the bridge is still there
TRIES = 6
REFUSED = 400  # writes that the line may refuse in a row, 5 ms each
END = b"\xc0"


def framed(data):
    """Return the frame of RFC 1055 around data and its CRC; Ctrl-C is escaped, too, for that ends a program at the console."""
    data += binascii.crc32(data).to_bytes(4, "big")
    return END + data.replace(b"\xdb", b"\xdb\xdd").replace(END, b"\xdb\xdc").replace(b"\x03", b"\xdb\xde") + END


def unframed(raw):
    """Return what a frame holds, of what stands between two ends; b"" if that is no whole frame."""
    data = raw.replace(b"\xdb\xde", b"\x03").replace(b"\xdb\xdc", END).replace(b"\xdb\xdd", b"\xdb")
    if len(data) < 9 or binascii.crc32(data[:-4]) != int.from_bytes(data[-4:], "big"):
        return b""
    return data[:-4]


class Console:
    """The console as a line: USB, or UART 0. An application may print on it."""

    def __init__(self):
        import select
        import sys

        self.poll = select.poll()
        self.poll.register(sys.stdin, select.POLLIN)
        self.input = sys.stdin.buffer
        self.write = sys.stdout.buffer.write

    def read(self, size):
        # One by one: more than there is would be waited for.
        data = bytearray()
        while len(data) < size and self.poll.poll(0):
            one = self.input.read(1)
            if not one:
                break
            data.extend(one)
        return data


class SerialTransport:
    """config: app, device, secret; `line`: a machine.UART, what to make one of ({"id": 1, "baudrate": 115200, "tx": 4, "rx": 5}), "console",
    or an object of yours: read(n) returns what there is, nothing or None at once, write(data) how much of it was taken. `piece`: 512."""

    def __init__(self, config):
        line = config.get("line")
        piece, baud = PIECE, config.get("baudrate", 115200)
        if line == "console":
            line, piece = Console(), CONSOLE_PIECE
        elif isinstance(line, dict):
            import machine

            line = dict(line)
            baud = line.get("baudrate", baud)
            line = machine.UART(line.pop("id", 1), rxbuf=ROOM, **line)
        if not hasattr(line, "read"):
            raise ValueError("transport serial: line is missing: expected a machine.UART, its id, tx and rx, or console")
        self.line = line
        self.piece = config.get("piece", piece)
        if not isinstance(self.piece, int) or not 32 <= self.piece <= 4096:
            raise ValueError("piece %s: expected 32 to 4096" % self.piece)
        # A slow line is given its time: what is asked for twice comes twice, and the line is behind for ever.
        self.answer_ms = ANSWER_MS + 20000 * (self.piece + 32) // baud
        self.login = "%s@%s:%s" % (config["device"].replace("%", "%25").replace("@", "%40"), config["app"], config["secret"])
        self.timeout_s = config.get("timeout_s", 60)
        self.left = b""
        self.retry_s = 0
        # Another one than before the last reset: an answer to a question of that time is none to this one's.
        self.id = int.from_bytes(os.urandom(4), "big")

    async def close(self):
        self.left = b""

    async def _send(self, data):
        view, at, refused = memoryview(framed(data)), 0, 0
        while at < len(view):
            n = self.line.write(view[at : at + WRITTEN])
            refused = 0 if n else refused + 1
            if refused > REFUSED:
                raise TransportError("the line takes nothing")
            at += n or 0
            await asyncio.sleep_ms(0 if n else 5)

    async def _heard(self, until):
        """Return the next frame that answers what was asked, without its head; None once it is `until` (of ticks_ms)."""
        pause, own = 1, self.id.to_bytes(4, "big")
        while True:
            at = self.left.find(END)
            if at >= 0:
                data, self.left = unframed(self.left[:at]), self.left[at + 1 :]
                if data[1:5] == own:
                    return data
                continue
            if len(self.left) > 2 * self.piece + 64:
                self.left = b""  # longer than any frame
            if ticks_diff(until, ticks_ms()) <= 0:
                return None
            data = self.line.read(256)
            if data:
                self.left += bytes(data)
                pause = 0
            await asyncio.sleep_ms(pause)
            pause = min(20, pause + 1)

    async def _ask(self, what, message, number, buffer, timeout_s, login):
        """Ask; return status and length of the answer in `buffer`."""
        self.id, self.retry_s = (self.id + 1) & 0xFFFFFFFF, 0
        head = self.id.to_bytes(4, "big")
        limit = ticks_add(ticks_ms(), timeout_s * 1000)
        known = False  # the bridge has the question
        got = tries = looks = 0
        said = None
        while True:
            if known:
                await self._send(b"M" + head + got.to_bytes(4, "big"))
            else:
                await self._send(b"A" + head + pack({0: what, 1: login, 2: message, 3: number, 4: self.piece, 5: len(buffer)}))
            wait_ms, waits = min(self.answer_ms << tries, max(ANSWER_LONGEST_MS, self.answer_ms)), False
            tries += 1
            until = ticks_add(ticks_ms(), wait_ms)
            while True:
                data = await self._heard(until)
                if data is None:
                    break
                kind = data[0]
                if kind == 0x77 and not waits:  # w: it is being done; the first piece comes by itself
                    known = waits = True
                    tries = 0
                    until = ticks_add(ticks_ms(), max(self.answer_ms, min(1000 << looks, ALIVE_MS)))
                    looks = min(looks + 1, 3)
                elif kind == 0x6C:  # l: the bridge was started anew
                    known, got = False, 0
                    break
                elif kind == 0x64 and len(data) >= 19 and int.from_bytes(data[5:9], "big") == got:  # d
                    if not got:
                        said = data[9:19]
                    n = len(data) - 19
                    total = int.from_bytes(said[2:6], "big")
                    if got + n > total or not n and got < total:
                        known, got = False, 0
                        break
                    if total > len(buffer):
                        raise TransportError("answer of %d bytes, at most %d" % (total, len(buffer)))
                    buffer[got : got + n] = data[19:]
                    got += n
                    known = True
                    if got == total:
                        if binascii.crc32(memoryview(buffer)[:total]) == int.from_bytes(said[6:10], "big"):
                            return int.from_bytes(said[:2], "big"), total
                        known, got = False, 0  # pieces of two answers
                    else:
                        tries = 0
                    break
            if ticks_diff(limit, ticks_ms()) <= 0:
                raise TransportError("no answer in %d s" % timeout_s)
            if tries >= TRIES:
                raise TransportError("no dfuctl bridge answers on the serial line")

    async def status(self, message, wait_s, buffer):
        status, length = await self._ask(0, message, wait_s, buffer, wait_s + self.timeout_s, self.login)
        if status == 200:
            return length
        if status == 202:
            return 0
        raise self._wrong(status, buffer, length)

    async def enrol(self, message, buffer):
        status, length = await self._ask(2, message, 0, buffer, self.timeout_s, "")
        if status != 200:
            raise self._wrong(status, buffer, length)

    async def chunk(self, package, number, buffer):
        status, length = await self._ask(1, package, number, buffer, self.timeout_s, self.login)
        if status == 200:
            return length
        if status == 404:
            raise Gone("status 404")
        raise self._wrong(status, buffer, length)

    def _wrong(self, status, buffer, length):
        told = bytes(memoryview(buffer)[: min(length, 120)])
        if status != 504:  # that has the bridge's own words
            self.retry_s = int(told) if length <= 6 and told.isdigit() else 0
            told = b""
        return (Denied if status == 403 else TransportError)("status %d %s" % (status, told))
