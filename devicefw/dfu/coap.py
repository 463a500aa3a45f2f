"""CoAP over UDP: what dfu.transport asks for, as docs/coap.md describes it. RFC 7252, 7959 (blocks), 7641 and 8132 (observe).

One request at a time, so the transport itself holds what is known of it; every answer is received, decrypted and left in the
caller's buffer, where its block belongs. It is one file and has its constants at compile time because both save RAM.
"""

import asyncio
import binascii
import errno
import gc
import os
import random
import socket
import sys
from time import ticks_add, ticks_diff, ticks_ms

import dfu
from dfu.errors import Denied, Gone, TransportError, forget
from micropython import const

# RFC 7252, section 4.8
_ACK_TIMEOUT_MS = const(2000)
_MAX_RETRANSMIT = const(4)

_SEPARATE = const(30)  # so many times ack_timeout_ms an answer may take that was acknowledged: a minute, if not configured
_REMEMBERED = const(8)  # message IDs of the server's, to know those that come twice
_ECHO_TRIES = const(3)
_HEAD = const(160)  # bytes that a message may have besides its block
_SMALLEST = const(2)  # exponent of 64 bytes
_ROOM_MIN = const(64)  # bytes: less is no room for another datagram
_NEWER = const(1 << 23)  # RFC 7641, section 3.4
_STALE_MS = const(128000)
_SEQUENCE_LAST = const(1 << 29)

_CON, _ACK, _RST = const(0), const(2), const(3)
_GET, _POST, _FETCH = const(1), const(2), const(5)
_CHANGED, _CONTENT, _CONTINUE = const(0x44), const(0x45), const(0x5F)
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _INCOMPLETE, _TOO_LARGE = const(0x81), const(0x83), const(0x84), const(0x88), const(0x8D)
_ETAG, _OBSERVE, _OSCORE, _PATH, _MAX_AGE = const(4), const(6), const(9), const(11), const(14)
_BLOCK2, _BLOCK1, _SIZE2 = const(23), const(27), const(28)
_ECHO, _TAG, _AUTH, _COMMAND = const(252), const(292), const(4209), const(4210)

# What _heard() says of a datagram.
_NOTHING, _ANSWER = const(0), const(1)


def read(buf, at, end):
    """Read the options that begin at `at`: return [(number, value)] and where the payload begins. Raises ValueError, IndexError."""
    options, number = [], 0
    while at < end:
        head = buf[at]
        at += 1
        if head == 0xFF:
            if at == end:
                raise ValueError
            return options, at
        sizes = [head >> 4, head & 15]
        for i in range(2):
            n = sizes[i]
            if n == 15:
                raise ValueError
            if n == 13:
                sizes[i] = 13 + buf[at]
            elif n == 14:
                sizes[i] = 269 + (buf[at] << 8 | buf[at + 1])
            at += max(0, n - 12)
        number += sizes[0]
        stop = at + sizes[1]
        # Critical ones that are not understood make a message useless. libcoap sends back the one that it did not know.
        if stop > end or number > 0xFFFF or (number & 1 and number not in (_OSCORE, _BLOCK2, _BLOCK1, _AUTH)):
            raise ValueError
        options.append((number, bytes(buf[at:stop])))
        at = stop
    return options, end


def write(out, options):
    """Append options, in ascending order of their numbers, to a bytearray."""
    last = 0
    for number, value in options:
        at = len(out)
        out.append(0)
        for n in (number - last, len(value)):
            nibble = n
            if n >= 269:
                out.extend((n - 269).to_bytes(2, "big"))
                nibble = 14
            elif n >= 13:
                out.append(n - 13)
                nibble = 13
            out[at] = out[at] << 4 | nibble
        out.extend(value)
        last = number


def put(options, number, value):
    """Insert an option in its place, behind others of its number. An int is written as short as it can be."""
    if isinstance(value, int):
        n = 0
        while value >> (8 * n):
            n += 1
        value = value.to_bytes(n, "big")
    at = len(options)
    while at and options[at - 1][0] > number:
        at -= 1
    options.insert(at, (number, value))


class CoapTransport:
    """config: url ("coap://host:port"), app, device, and `psk` (16 bytes, or 32 hexadecimal digits) for OSCORE, or else `secret`,
    which then travels in the clear. `block`: largest block, 16 to 1024 bytes, a power of two, 256; `ack_timeout_ms`: 2000.

    `sent` and `repeated` count the messages that were sent for the first time, and again.
    """

    def __init__(self, config):
        from dfu.transport import address

        _, self.host, self.port = address(config["url"], {"coap": 5683})
        sizes = (16, 32, 64, 128, 256, 512, 1024)
        block = config.get("block", 256)
        if block not in sizes:
            raise ValueError("block %s: expected one of %s" % (block, sizes))
        self.exponent = sizes.index(block)
        self.timeout = config.get("ack_timeout_ms", _ACK_TIMEOUT_MS)
        user = "%s@%s" % (config["device"].replace("%", "%25").replace("@", "%40"), config["app"])
        self.auth = self.oscore = self.sock = self.observing = self.kept = self.told = self.piv = self.kept_keys = None
        self.user, self.psk = user, config.get("psk")
        if self.psk is None:
            self.auth = b"Basic " + binascii.b2a_base64((user + ":" + config["secret"]).encode()).strip()
        else:
            if isinstance(self.psk, str):
                self.psk = binascii.unhexlify(self.psk)
            if len(self.psk) != 16:
                raise ValueError("psk of %d bytes: expected 16, or 32 hexadecimal digits" % len(self.psk))
        self.mid = int.from_bytes(os.urandom(2), "big")
        self.remembered = []
        self.sent = self.repeated = 0

    async def close(self):
        sock, self.sock, self.observing = self.sock, None, None
        if sock is not None:
            sock.close()

    # Messages (RFC 7252, section 4)

    def _transmit(self, message, kind=None):
        """Send a message, or an empty one of `kind` with the message ID `message`."""
        if kind is not None:
            message = bytes([0x40 | kind << 4, 0, message >> 8, message & 0xFF])
        try:
            self.sock.send(message)
        except OSError as error:
            # No route, no memory, nobody there (of an earlier one): lost as any other may be, and sent again in a while.
            self.trouble = error

    def _readable(self):
        # A coroutine: MicroPython has no public way to wait for a datagram.
        yield asyncio.core._io_queue.queue_read(self.sock)

    async def _receive(self, deadline):
        """Return the length of the next datagram in self.room; 0 once it is `deadline` (of ticks_ms)."""
        while True:
            left = ticks_diff(deadline, ticks_ms())
            if left <= 0:
                return 0
            try:
                await asyncio.wait_for_ms(self._readable(), left)
                # Not readinto(): that goes on until the buffer is full, through as many datagrams as there are.
                data = self.sock.recv((16 << self.exponent) + _HEAD)
            except asyncio.TimeoutError:
                return 0
            except MemoryError:
                # Nobody else's business: this one is lost, as if on the way. From now on smaller blocks are asked for: where the heap has
                # no piece of this size any more it may never have one again.
                gc.collect()
                self.exponent = max(_SMALLEST, self.exponent - 1)
                self.trouble = "out of memory"
                try:
                    self.sock.recv(_ROOM_MIN)
                except OSError:
                    pass
                continue
            except OSError as error:
                if error.errno not in (errno.ECONNREFUSED, errno.EAGAIN):
                    raise
                self.trouble = error
                continue
            length, room = len(data), self.room
            if length > len(room) or length == (16 << self.exponent) + _HEAD:
                # It does not fit, or was cut. What cannot get in now will not the next time either; an old one may well be larger.
                if data[0] == 0x64 and data[2] << 8 | data[3] == self.mid:
                    raise TransportError("the answer is larger than the buffer")
            elif length:
                room[:length] = data
                return length

    async def _exchange(self, message, strict):
        """Send a confirmable message until it is answered. strict: its token was used before, so what does not acknowledge this
        message may be an answer to that. Raises TransportError, OSError."""
        if self.sock is None:
            # Looking the name up blocks, as it does in asyncio.open_connection.
            found = socket.getaddrinfo(self.host, self.port, 0, socket.SOCK_DGRAM)[0]
            self.sock = socket.socket(found[0], socket.SOCK_DGRAM)
            # From now on what others send does not arrive.
            self.sock.connect(found[-1])
            self.sock.setblocking(False)
            self.remembered = []
        self.trouble = "silence"
        self.mid = (self.mid + 1) & 0xFFFF
        message[2], message[3] = self.mid >> 8, self.mid & 0xFF
        timeout = self.timeout + self.timeout * random.getrandbits(8) // 510
        acknowledged = False
        self.sent += 1
        for attempt in range(_MAX_RETRANSMIT + 1):
            self._transmit(message)
            self.repeated += attempt > 0
            deadline = ticks_add(ticks_ms(), timeout)
            timeout *= 2
            while True:
                length = await self._receive(deadline)
                if not length:
                    break
                what = self._heard(length, strict and not acknowledged)
                if what == _ANSWER:
                    return
                if what == _RST:
                    raise TransportError("reset")
                if what == _ACK and not acknowledged:
                    acknowledged = True
                    deadline = ticks_add(ticks_ms(), _SEPARATE * self.timeout)
            if acknowledged:
                break
        raise TransportError("no answer: %s" % self.trouble)

    def _heard(self, length, strict):
        """Do what a datagram asks of this layer. Return _ANSWER if it is one to our request (then self.code, options, start and end
        say what), _ACK or _RST if it is that of our message and empty, or _NOTHING."""
        room = self.room
        if length < 4 or room[0] >> 6 != 1:
            return _NOTHING
        kind, code, mid, at = room[0] >> 4 & 3, room[1], room[2] << 8 | room[3], 4 + (room[0] & 15)
        try:
            if at > min(length, 12) or (not code and length > 4):
                raise ValueError
            options, start = read(room, at, length)
        except (ValueError, IndexError):
            if kind == _CON:
                self._transmit(mid, _RST)
            return _NOTHING
        response = code >> 5 in (2, 4, 5)
        ours = response and bytes(room[4:at]) == self.token
        if kind >= _ACK:
            if mid != self.mid:
                return _NOTHING
            if not code:
                return kind
            return _ANSWER if kind == _ACK and ours and self._takes(code, options, start, length) else _NOTHING
        if response and mid in self.remembered:
            if kind == _CON:
                self._transmit(mid, _ACK)
            return _NOTHING
        if not ours:
            # Requests and pings, for which there is nobody here; and notifications that nobody waits for any more end with this.
            # One that is waited for, while blocks of the one before are being fetched, comes again.
            if (kind == _CON or response) and bytes(room[4:at]) != self.kept:
                self._transmit(mid, _RST)
            return _NOTHING
        if strict or not self._takes(code, options, start, length):
            if kind == _CON and not strict and self.psk is None:
                self._transmit(mid, _ACK)
            return _NOTHING
        if kind == _CON:
            self._transmit(mid, _ACK)
        self.remembered = self.remembered[1 - _REMEMBERED :] + [mid]
        return _ANSWER

    # Requests

    def _message(self, code, options, payload):
        """Return a request, as a bytearray."""
        token = self.token
        out = bytearray([0x40 | len(token), code, 0, 0]) + token
        if self.psk is not None:
            if self.oscore is None:
                self._protect()
            self.piv = self.oscore.take()
            outer = options[:1] if options[0][0] == _OBSERVE else []
            out[1] = _FETCH if outer else _POST
            write(out, outer + [(_OSCORE, self.oscore.option(self.piv))])
            out.append(0xFF)
            start = len(out)
            out.append(code)
        write(out, options)
        if payload:
            out.append(0xFF)
            out.extend(payload)
        if self.psk is not None:
            self.oscore.seal(self.piv, out, start)
        return out

    def _protect(self):
        from dfu.oscore import Context

        if self.kept_keys is None or self.kept_keys[2] > _SEQUENCE_LAST:
            import dfu.oscorekeys

            # Not at the start: the chip's random numbers are good once its radio is on.
            name = os.urandom(8) + self.user.encode()
            self.kept_keys = dfu.oscorekeys.derive(self.psk, b"", name, b"\x01", b"\x00"), name, 0
            forget("oscorekeys")
        self.oscore = Context(*self.kept_keys)

    def rest(self):
        """Give back what the next request can make again."""
        self.room = self.options = self.found = None
        forget("coapstatus")
        if self.oscore is not None:
            self.kept_keys = self.oscore.keys, self.oscore.hint, self.oscore.sequence
            self.oscore = None
            forget("oscore")

    def _takes(self, code, options, start, end):
        """Return whether what has our token is an answer to be believed, and a newer one than the last; if so, keep it."""
        self.found = options
        order = self.first(_OBSERVE)
        if order is not None:
            order = int.from_bytes(order, "big")
        protected = self.first(_OSCORE)
        if self.psk is None:
            if protected is not None:
                return False
        elif protected is None:
            # Only an error may come without protection: where the server has no key, it has nothing else to say.
            if code >> 5 == 2:
                return False
        else:
            opened = self.oscore.open(self.piv, protected, self.room, start, end)
            if opened is None:
                return False
            end, order = opened
            code = self.room[start]
            try:
                options, start = read(self.room, start + 1, end)
            except (ValueError, IndexError):
                return False
        if self.code:
            # Notifications overtake each other. An error ends the observation, whatever its number; a forged one does not.
            if self.psk is not None:
                if order is None or (self.order is not None and order <= self.order):
                    return False
            elif order is None or self.order is None:
                if code >> 5 == 2:
                    return False
            elif not 0 < (order - self.order) & 0xFFFFFF < _NEWER and ticks_diff(ticks_ms(), self.since) < _STALE_MS:
                return False
        self.code, self.options, self.start, self.end = code, options, start, end
        self.order, self.since = order, ticks_ms()
        return True

    def first(self, number, found=None):
        """Return the first option of that number, or None."""
        for n, value in self.found if found is None else found:
            if n == number:
                return value
        return None

    def _block(self, number):
        """Return a block option of the answer: number, more, exponent of the size; or what is as good as none."""
        value = self.first(number, self.options)
        if value is None:
            return 0, 0, 7
        n = int.from_bytes(value, "big")
        if len(value) > 3 or n & 7 == 7:
            raise TransportError("block option")
        return n >> 4, n >> 3 & 1, n & 7

    async def _ask(self, code, options, payload, room, token=None):
        """Send one request. The answer is in self.code, self.options and, in `room` (a memoryview), from self.start to self.end."""
        options, self.retry_s = list(options), 0
        if self.auth is not None:
            put(options, _AUTH, self.auth)
        self.room = room
        for _ in range(_ECHO_TRIES):
            self.token = token or os.urandom(4)
            self.code = 0
            try:
                await self._exchange(self._message(code, options, payload), token is not None)
            except OSError as error:
                await self.close()
                raise TransportError("coap: %s" % error)
            echo = self.first(_ECHO, self.options)
            if self.code != _UNAUTHORIZED or echo is None:
                return
            # The server wants to know that we are here, now (RFC 9175): the same again with its proof.
            options = [option for option in options if option[0] != _ECHO]
            put(options, _ECHO, echo)
        raise TransportError("echo without end")

    def _check(self):
        code = self.code
        if code not in (_CONTENT, _CHANGED):
            self.retry_s = int.from_bytes(self.first(_MAX_AGE, self.options) or b"", "big")
            kind = Gone if code == _NOT_FOUND else Denied if code in (_UNAUTHORIZED, _FORBIDDEN) else TransportError
            raise kind("status %d.%02d" % (code >> 5, code & 31))

    async def _body(self, code, options, buffer):
        """Put an answer's payload into `buffer`, fetching the blocks behind the first; return its length."""
        at, etag, view = 0, self.first(_ETAG, self.options), memoryview(buffer)
        whole = int.from_bytes(self.first(_SIZE2, self.options) or b"", "big")
        while True:
            self._check()
            n = self.end - self.start
            number, more, exponent = self._block(_BLOCK2)
            size = 16 << exponent
            if number * size != at or n > size or (more and n != size):
                raise TransportError("block %d of %d bytes at %d" % (number, n, at))
            if self.first(_ETAG, self.options) != etag:
                raise TransportError("it changed between two blocks")
            # It is behind its head, in its own place: to the front.
            view[at : at + n] = self.room[self.start : self.end]
            at += n
            if not more:
                return at
            if len(buffer) - at < _ROOM_MIN or whole > len(buffer):
                raise TransportError("the answer is larger than the buffer")
            wanted = list(options)
            put(wanted, _BLOCK2, at >> exponent + 4 << 4 | exponent)
            await self._ask(code, wanted, b"", view[at:])

    # What the agent calls

    async def status(self, message, wait_s, buffer):
        if "dfu.coapstatus" not in sys.modules:
            self.rest()  # the larger of the two first, while there is room
        import dfu.coapstatus

        return await dfu.coapstatus.status(self, message, wait_s, buffer)

    async def chunk(self, package, number, buffer):
        forget("coapstatus")
        options = [(_PATH, b"v1"), (_PATH, b"dfu"), (_PATH, binascii.hexlify(package)), (_PATH, b"%d" % number)]
        first = list(options)
        put(first, _BLOCK2, self.exponent)
        await self._ask(_GET, first, b"", memoryview(buffer))
        return await self._body(_GET, options, buffer)
