"""CoAP over UDP: what dfu.transport asks for, as docs/coap.md describes it. CoapTransport says what is asked and puts blocks
together (RFC 7959, 7641, 8132); dfu.coapudp sends, waits and sends again."""

import asyncio
import binascii
import os
from time import ticks_add, ticks_diff, ticks_ms

from dfu import coapmsg as c
from dfu.coapudp import Endpoint
from dfu.pack import PackError, unpack
from dfu.transport import Denied, Gone, TransportError

ECHO_TRIES = 2
BODY_TRIES = 2
NEWER = 1 << 23  # RFC 7641, section 3.4
STALE_MS = 128000
WAIT, SYNC = 0, 1  # the commands of docs/protocol.md that are nothing to do
SOON_S = 5  # the agent itself asks again after so short a time
SEQUENCE_LAST = 1 << 32


class CoapTransport:
    """config: url ("coap://host:port"), app, device, and `psk` (16 bytes, or 32 hexadecimal digits) for OSCORE, or else `secret`,
    which then travels in the clear. `block`: largest block, 16 to 1024 bytes, a power of two; `ack_timeout_ms`: 2000.

    sent and repeated count the messages that were sent for the first time and again.
    """

    def __init__(self, config):
        scheme, _, rest = config["url"].partition("://")
        if scheme != "coap":
            raise ValueError("url")
        host, _, port = rest.rstrip("/").partition(":")
        block = config.get("block", 1024)
        self.exponent = 0
        while 16 << self.exponent < block:
            self.exponent += 1
        if 16 << self.exponent != block or self.exponent > 6:
            raise ValueError("block")
        self.block = block
        user = "%s@%s" % (config["device"].replace("%", "%25").replace("@", "%40"), config["app"])
        psk = config.get("psk")
        self.auth = None
        if psk is None:
            self.auth = b"Basic " + binascii.b2a_base64((user + ":" + config["secret"]).encode()).strip()
        elif isinstance(psk, str):
            psk = binascii.unhexlify(psk)
        if psk is not None and len(psk) != 16:
            raise ValueError("psk")
        self.endpoint = Endpoint(host, int(port or 5683), block, config.get("ack_timeout_ms", 2000))
        self.psk, self.user, self.oscore = psk, user, None
        self.observing = None  # the token of the last registration
        self.told = None  # the last command while observing, if it was nothing to do

    @property
    def sent(self):
        return self.endpoint.sent

    @property
    def repeated(self):
        return self.endpoint.repeated

    async def close(self):
        self.observing = None
        self.endpoint.close()

    # Requests

    def _context(self):
        if self.psk is not None and (self.oscore is None or self.oscore.sequence > SEQUENCE_LAST):
            from dfu.oscore import Context

            # Here and not at the start: the chip's random numbers are good once its radio is on.
            self.oscore = Context(self.psk, os.urandom(8) + self.user.encode())
        return self.oscore

    async def _ask(self, code, options, payload=b"", token=None):
        """Send one request, return its _Asked with the answer's Message in .answer: payload in .buf[answer.start:answer.end]."""
        strict = token is not None
        options = list(options)
        if self.auth is not None:
            _put(options, c.AUTH, self.auth)
        for _ in range(ECHO_TRIES + 1):
            asked = _Asked(token or os.urandom(4), self._context())
            try:
                await self.endpoint.ask(asked, asked.message(code, options, payload), strict)
            except OSError as error:
                self.endpoint.close()
                raise TransportError("coap: %s" % error)
            answer = asked.answer
            echo = answer.first(c.ECHO)
            if answer.code != c.UNAUTHORIZED or echo is None:
                return asked
            # The server wants to know that we are here, now (RFC 9175): the same again with its proof.
            options = [option for option in options if option[0] != c.ECHO]
            _put(options, c.ECHO, echo)
        raise TransportError("echo without end")

    def _check(self, answer, wanted):
        if answer.code not in wanted:
            text = "status %d.%02d" % (answer.code >> 5, answer.code & 31)
            denied = answer.code in (c.UNAUTHORIZED, c.FORBIDDEN)
            raise (Gone if answer.code == c.NOT_FOUND else Denied if denied else TransportError)(text)

    async def _send(self, code, options, payload):
        """Send a payload of any length, in blocks if it is longer than one. Return the _Asked of the last."""
        exponent, size = self.exponent, self.block
        if len(payload) <= size:
            return await self._ask(code, options, payload)
        for _ in range(BODY_TRIES):
            # A tag for each body, so that blocks of two are never put together (RFC 9175, section 3).
            tag = os.urandom(4)
            at = 0
            while True:
                size = 16 << exponent
                more = at + size < len(payload)
                blocked = list(options)
                _put(blocked, c.BLOCK1, c.block(at // size, more, exponent))
                _put(blocked, c.TAG, tag)
                asked = await self._ask(code, blocked, payload[at : at + size])
                answer = asked.answer
                if not more or answer.code != c.CONTINUE:
                    break
                at += size
                told = _block(answer, c.BLOCK1)
                if told is not None and told[2] < exponent:
                    exponent = told[2]
            if answer.code == c.TOO_LARGE:
                told = _block(answer, c.BLOCK1)
                if told is None or told[2] >= exponent:
                    return asked
                exponent = told[2]
            elif answer.code != c.INCOMPLETE:
                return asked
        return asked

    async def _body(self, asked, code, options, buffer):
        """Put an answer's payload into `buffer`, fetching the blocks behind the first; return its length."""
        at, etag = 0, asked.answer.first(c.ETAG)
        view = memoryview(buffer)
        while True:
            answer = asked.answer
            n = answer.end - answer.start
            block = _block(answer, c.BLOCK2)
            number, more, exponent = block if block is not None else (0, 0, 6)
            size = 16 << exponent
            if number * size != at or (n != size if more else block is not None and n > size):
                raise TransportError("block %d of %d bytes at %d" % (number, n, at))
            if answer.first(c.ETAG) != etag:
                raise TransportError("it changed between two blocks")
            if at + n > len(buffer):
                raise TransportError("answer of more than %d bytes" % len(buffer))
            view[at : at + n] = memoryview(asked.buf)[answer.start : answer.end]
            at += n
            if not more:
                return at
            wanted = list(options)
            _put(wanted, c.BLOCK2, c.block(at // size, 0, exponent))
            asked = await self._ask(code, wanted)
            self._check(asked.answer, (c.CONTENT,))

    # What the agent calls

    async def status(self, message, wait_s, buffer):
        options = [(c.PATH, b"v1"), (c.PATH, b"dfu")]
        if self.exponent < 6:
            _put(options, c.BLOCK2, c.block(0, 0, self.exponent))
        if not wait_s or len(message) > self.block:
            return await self._command(await self._send(c.POST, options, message), c.POST, options, buffer)
        return await self._observe(message, wait_s, options, buffer)

    async def _command(self, asked, code, options, buffer):
        self._check(asked.answer, (c.CONTENT, c.CHANGED))
        if asked.answer.first(c.COMMAND) != b"dfu":
            return 0
        options = [option for option in options if option[0] not in (c.OBSERVE, c.BLOCK2)]
        return await self._body(asked, code, options, buffer)

    async def _observe(self, message, wait_s, options, buffer):
        """Register with the status; return the first command that is news, or 0 after wait_s."""
        deadline = ticks_add(ticks_ms(), wait_s * 1000)
        # The same token again, so that the server has one registration of ours, not one more.
        token, self.observing = self.observing, None
        observe = list(options)
        _put(observe, c.OBSERVE, b"")
        asked = await self._ask(c.FETCH, observe, message, token)
        self.observing = asked.token
        while True:
            following = asked.answer.first(c.OBSERVE) is not None
            length = await self._command(asked, c.FETCH, options, buffer)
            if length:
                # Over HTTP the server holds its answer until it is news. Here the first one comes at once, even if it says what
                # the last one said; with that the agent would ask again without end.
                idle = _idle(buffer, length)
                if idle is None or idle != self.told:
                    self.told = idle
                    return length
                if idle[0] == WAIT:
                    again = ticks_add(ticks_ms(), min(idle[1], wait_s) * 1000)
                    deadline = again if ticks_diff(again, deadline) < 0 else deadline
            if not following:
                await asyncio.sleep_ms(max(0, ticks_diff(deadline, ticks_ms())))
                return 0
            try:
                if not await self.endpoint.listen(asked, deadline):
                    return 0
            except OSError as error:
                raise TransportError("coap: %s" % error)

    async def chunk(self, package, number, buffer):
        path = binascii.hexlify(package)
        options = [(c.PATH, b"v1"), (c.PATH, b"dfu"), (c.PATH, path), (c.PATH, b"%d" % number)]
        first = list(options)
        _put(first, c.BLOCK2, c.block(0, 0, self.exponent))
        asked = await self._ask(c.GET, first)
        self._check(asked.answer, (c.CONTENT,))
        return await self._body(asked, c.GET, options, buffer)


class _Asked:
    """One request and its answer: protects the one, opens the other if there is a security context."""

    def __init__(self, token, oscore):
        self.token, self.oscore = token, oscore
        self.answer = self.buf = self.order = self.heard_ms = None
        self.piv = oscore.take() if oscore is not None else b""

    def message(self, code, options, payload):
        """Return the whole message, as a bytearray."""
        protected = self.oscore
        observe = options[0] if options and options[0][0] == c.OBSERVE else None
        if protected is None:
            out = c.head(c.CON, code, 0, self.token)
        else:
            out = c.head(c.CON, c.FETCH if observe else c.POST, 0, self.token)
            outer = [observe] if observe else []
            c.put_options(out, outer + [(c.OSCORE, protected.option(self.piv))])
            out.append(c.MARK)
            start = len(out)
            out.append(code)
        c.put_options(out, options)
        if payload:
            out.append(c.MARK)
            out.extend(payload)
        if protected is not None:
            protected.seal(self.piv, out, start)
        return out

    def takes(self, m, buf):
        """Return whether the message, which has our token, is an answer to be believed; if so, keep it (opened) in .answer."""
        order = m.first(c.OBSERVE)
        order = int.from_bytes(order, "big") if order is not None else None
        option = m.first(c.OSCORE)
        if self.oscore is None:
            if option is not None:
                return False
        elif option is None:
            # Only an error may come without protection: where the server has no key, it has nothing else to say.
            if m.code >> 5 == 2:
                return False
        else:
            opened = self._open(m, option, buf)
            if opened is None:
                return False
            order, m = opened
        if self.answer is not None and not self._newer(order, m):
            return False
        self.answer, self.buf, self.order, self.heard_ms = m, buf, order, ticks_ms()
        return True

    def _open(self, m, option, buf):
        from dfu.oscore import OscoreError

        try:
            end, order = self.oscore.open(self.piv, option, buf, m.start, m.end)
            inside = c.Message()
            inside.kind, inside.mid, inside.token, inside.code = m.kind, m.mid, m.token, buf[m.start]
            c.inner(inside, buf, m.start + 1, end)
        except (OscoreError, c.FormatError):
            return None
        return order, inside

    def _newer(self, order, m):
        """Notifications overtake each other: only a newer one counts. Errors end the observation, whatever their number."""
        if self.oscore is not None:
            return order is not None and (self.order is None or order > self.order)
        if order is None or self.order is None:
            return m.code >> 5 != 2
        ahead = (order - self.order) & 0xFFFFFF
        return 0 < ahead < NEWER or ticks_diff(ticks_ms(), self.heard_ms) > STALE_MS


def _put(options, number, value):
    """Insert an option in its place, behind others of its number."""
    at = len(options)
    while at and options[at - 1][0] > number:
        at -= 1
    options.insert(at, (number, value))


def _idle(buffer, length):
    """Return (type, seconds, bytes) of a command that asks for nothing, or None. What cannot be read is for the agent to refuse."""
    if length > 256:
        return None
    raw = bytes(memoryview(buffer)[:length])
    try:
        command = unpack(raw)
        kind, poll_s = command[0], command.get(1, 60)
        return (kind, poll_s, raw) if kind in (WAIT, SYNC) and poll_s > SOON_S else None
    except (PackError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _block(answer, number):
    try:
        return answer.block(number)
    except c.FormatError as error:
        raise TransportError(error.args[0])
