"""HTTP/1.1 over one connection that is kept: what dfu.transport asks for."""

import asyncio
import binascii

from dfu.errors import Denied, Gone, TransportError, forget

HEAD_MAX = 2048  # bytes of an answer's status line and headers


class HttpTransport:
    """config: url ("http://host:port" or https), app, device, secret; for https: ca (certificate of the CA, DER or PEM) or pin
    (the server's own self-signed certificate), and server_name, if its certificate names another host than the url."""

    def __init__(self, config):
        from dfu.transport import http_parts

        self.secure, self.host, self.port, self.head = http_parts(config)
        self.config = config
        self.timeout_s = config.get("timeout_s", 60)
        self.retry_s = 0
        self.reader = self.writer = self.context = None

    async def _open(self):
        if self.writer is not None:
            return
        try:
            if self.secure:
                from dfu.tls import connect

                self.reader, self.writer = await connect(self)
            else:
                self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        except (OSError, ValueError) as error:
            self.writer = None
            raise TransportError("connect: %s" % error)
        finally:
            forget("tls")

    async def close(self):
        writer, self.reader, self.writer = self.writer, None, None
        if writer is not None:
            try:
                writer.close()
                await writer.wait_closed()
            except OSError:
                pass

    async def _ask(self, head, body, buffer, timeout_s):
        """Send one request; return (status, headers of interest, length of the body in `buffer`)."""
        self.retry_s = 0
        # A kept connection may have been closed meanwhile: once more, on a fresh one.
        for kept in (self.writer is not None, False):
            try:
                return await asyncio.wait_for(self._ask_once(head, body, buffer), timeout_s)
            except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
                await self.close()
                if not kept or isinstance(error, asyncio.TimeoutError):
                    raise TransportError(str(error) or type(error).__name__)

    async def _ask_once(self, head, body, buffer):
        await self._open()
        writer, reader = self.writer, self.reader
        writer.write(head + self.head + b"Content-Length: %d\r\n\r\n" % len(body))
        if body:
            writer.write(body)
        await writer.drain()
        # Head and body are received where the body belongs: no line of theirs can take more RAM than there is already.
        view = memoryview(buffer)
        got, end = 0, -1
        while end < 0:
            if got >= min(HEAD_MAX, len(buffer)):
                raise OSError("headers of more than %d bytes" % got)
            got += await _more(reader, view[got : min(HEAD_MAX, len(buffer))])
            found = bytes(view[:got])
            end = found.find(b"\r\n\r\n")
        lines = found[:end].split(b"\r\n")
        parts = lines[0].split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1."):
            raise OSError("no HTTP")
        status = int(parts[1])
        length, command, close = 0, False, False
        for i in range(1, len(lines)):
            name, _, value = lines[i].partition(b":")
            name, value = name.lower(), value.strip()
            if name == b"content-length":
                length = int(value)
            elif name == b"command":
                command = value == b"dfu"
            elif name == b"retry-after" and value.isdigit():
                self.retry_s = int(value)
            elif name == b"connection":
                close = value.lower() == b"close"
        found = lines = parts = None  # the body may need the room
        if not 0 <= length <= len(buffer):
            raise OSError("answer of %d bytes, at most %d" % (length, len(buffer)))
        got -= end + 4
        if got > length:
            raise OSError("bytes behind the answer")
        view[:got] = view[end + 4 : end + 4 + got]
        while got < length:
            got += await _more(reader, view[got:length])
        if close:
            await self.close()
        return status, command, length

    async def status(self, message, wait_s, buffer):
        head = b"POST /v1/dfu?ct=%d HTTP/1.1\r\n" % wait_s
        status, command, length = await self._ask(head, message, buffer, wait_s + self.timeout_s)
        if status == 200 and command:
            return length
        if status == 202:
            return 0
        raise (Denied if status == 403 else TransportError)("status %d" % status)

    async def enrol(self, message, buffer):
        status, _, _ = await self._ask(b"POST /v1/enrol HTTP/1.1\r\n", message, buffer, self.timeout_s)
        if status != 200:
            raise (Denied if status == 403 else TransportError)("enrolment: status %d" % status)

    async def chunk(self, package, number, buffer):
        head = b"GET /v1/dfu/%s/%d HTTP/1.1\r\n" % (binascii.hexlify(package), number)
        status, _, length = await self._ask(head, b"", buffer, self.timeout_s)
        if status == 200:
            return length
        raise (Gone if status == 404 else Denied if status == 403 else TransportError)("status %d" % status)


async def _more(reader, view):
    """Receive into `view`; return how many bytes. Raises EOFError at the end."""
    n = None
    while n is None:  # as long as no whole TLS record has come
        n = await reader.readinto(view)
    if not n:
        raise EOFError
    return n
