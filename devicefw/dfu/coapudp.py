"""CoAP's message layer for a client (RFC 7252, section 4): one socket to one server, confirmable messages that are sent again
until they are answered, acknowledgements, duplicates. It knows nothing of what is asked."""

import asyncio
import errno
import os
import random
import socket
from time import ticks_add, ticks_diff, ticks_ms

from dfu import coapmsg as c
from dfu.transport import TransportError

MAX_RETRANSMIT = 4  # RFC 7252, section 4.8, as is ACK_TIMEOUT (the caller's, milliseconds)
SEPARATE_MS = 60000  # how long an answer may take that was acknowledged
REMEMBERED = 8  # message IDs of the server's, to know those that come twice
ROOM_BYTES = 320  # a message is one block, and header, options and a tag


class Endpoint:
    """`block`: the largest payload, bytes. Everything else comes in pieces that are thrown away unread."""

    def __init__(self, host, port, block, ack_timeout_ms):
        self.host, self.port, self.ack_timeout_ms = host, port, ack_timeout_ms
        self.buf = bytearray(block + ROOM_BYTES)
        self.mid = int.from_bytes(os.urandom(2), "big")
        self.sock = self.reader = None
        self.remembered = []
        self.sent = self.repeated = 0

    def open(self):
        """Raises OSError. Looking the name up blocks, as it does in asyncio.open_connection."""
        if self.sock is not None:
            return
        found = socket.getaddrinfo(self.host, self.port, 0, socket.SOCK_DGRAM)[0]
        sock = socket.socket(found[0], socket.SOCK_DGRAM)
        try:
            # From now on, what others send does not arrive.
            sock.connect(found[-1])
            sock.setblocking(False)
            self.reader = asyncio.StreamReader(sock)
        except OSError:
            sock.close()
            raise
        self.sock = sock
        self.remembered = []

    def close(self):
        sock, self.sock, self.reader = self.sock, None, None
        if sock is not None:
            sock.close()

    def _send(self, message):
        try:
            self.sock.send(message)
        except OSError as error:
            # No route, no memory, nobody there (of an earlier one): lost like any other, and sent again in a while.
            self.trouble = error

    async def _receive(self, deadline):
        """Return the length of the next datagram in self.buf; 0 once it is `deadline` (of ticks_ms)."""
        while True:
            left = ticks_diff(deadline, ticks_ms())
            if left <= 0:
                return 0
            try:
                length = await asyncio.wait_for_ms(self.reader.readinto(self.buf), left)
            except asyncio.TimeoutError:
                return 0
            except OSError as error:
                if error.errno != errno.ECONNREFUSED:
                    raise
                self.trouble = error
                continue
            # One that fills the buffer may have been cut.
            if length and length < len(self.buf):
                return length

    async def ask(self, asked, message, strict):
        """Send `message` (a bytearray; its ID is set here) until asked.takes() an answer. strict: the token was used before, so
        what is no acknowledgement of this message may be an answer to that. Raises TransportError, OSError."""
        self.open()
        self.trouble = None
        self.mid = mid = (self.mid + 1) & 0xFFFF
        message[2], message[3] = mid >> 8, mid & 0xFF
        timeout = self.ack_timeout_ms + self.ack_timeout_ms * random.getrandbits(10) // 2047
        acknowledged = False
        self.sent += 1
        for attempt in range(MAX_RETRANSMIT + 1):
            self._send(message)
            self.repeated += attempt > 0
            deadline = ticks_add(ticks_ms(), timeout)
            timeout *= 2
            while True:
                length = await self._receive(deadline)
                if not length:
                    break
                m = self._heard(length, asked, mid, strict and not acknowledged)
                if m is None:
                    continue
                if m.kind == c.RST:
                    raise TransportError("reset")
                if m.code != c.EMPTY:
                    return
                if not acknowledged:
                    acknowledged = True
                    deadline = ticks_add(ticks_ms(), SEPARATE_MS)
            if acknowledged:
                raise TransportError("no answer")
        raise TransportError("no answer: %s" % self.trouble if self.trouble is not None else "no answer")

    async def listen(self, asked, deadline):
        """Wait for another message that asked.takes(); return whether one came before `deadline`."""
        self.open()
        while True:
            length = await self._receive(deadline)
            if not length:
                return False
            m = self._heard(length, asked, None, False)
            if m is not None:
                return True

    def _heard(self, length, asked, mid, strict):
        """Do what a datagram asks of the message layer. Return its Message if it concerns the request: an answer that asked.takes(),
        an empty acknowledgement or a reset of message `mid`."""
        try:
            m = c.parse(self.buf, length)
        except c.FormatError as error:
            if error.args[1] is not None:
                self._send(c.head(c.RST, c.EMPTY, error.args[1]))
            return None
        kind, ours = m.kind, m.token == asked.token
        if kind == c.ACK or kind == c.RST:
            if m.mid != mid or (kind == c.RST and m.code != c.EMPTY):
                return None
            if m.code == c.EMPTY:
                return m
            return m if ours and m.code >> 5 in (2, 4, 5) and asked.takes(m, self.buf) else None
        if m.code >> 5 not in (2, 4, 5):
            ours = False  # requests, pings and what is reserved: there is nobody here for them
        elif m.mid in self.remembered:
            if kind == c.CON:
                self._send(c.head(c.ACK, c.EMPTY, m.mid))
            return None
        elif ours and strict:
            return None
        if not ours:
            # A notification that nobody waits for any more ends with this, too.
            if kind == c.CON or (m.first(c.OBSERVE) is not None):
                self._send(c.head(c.RST, c.EMPTY, m.mid))
            return None
        # Opening it needs the buffer; whether it is believed or not, it has arrived.
        taken = asked.takes(m, self.buf)
        if kind == c.CON and (taken or asked.oscore is None):
            self._send(c.head(c.ACK, c.EMPTY, m.mid))
        if not taken:
            return None
        self.remembered.append(m.mid)
        if len(self.remembered) > REMEMBERED:
            self.remembered.pop(0)
        return m
