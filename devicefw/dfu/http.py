"""HTTP/1.1 over one connection that is kept: what dfu.transport asks for."""

import asyncio
import binascii

from dfu.transport import Denied, Gone, TransportError


class HttpTransport:
    """config: url ("http://host:port" or https), app, device, secret; for https: ca (certificate of the CA, DER or PEM) or pin
    (the server's own self-signed certificate), and server_name, if its certificate names another host than the url."""

    def __init__(self, config):
        url = config["url"]
        scheme, _, rest = url.partition("://")
        if scheme not in ("http", "https"):
            raise ValueError("url")
        self.host, _, port = rest.rstrip("/").partition(":")
        self.port = int(port or (443 if scheme == "https" else 80))
        self.secure = scheme == "https"
        self.config = config
        if self.secure and len(config.get("pin") or config.get("ca") or b"") < 64:
            # Never in silence without a judge; a hash is none: stock MicroPython cannot show the server's certificate.
            raise ValueError("https needs a certificate: ca or pin")
        user = "%s@%s:%s" % (config["device"].replace("%", "%25").replace("@", "%40"), config["app"], config["secret"])
        self.auth = b"Authorization: Basic " + binascii.b2a_base64(user.encode()).strip() + b"\r\n"
        self.reader = self.writer = None

    def _context(self):
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_mode = ssl.CERT_REQUIRED
        # A self-signed certificate is its own authority: nobody but the holder of its key can answer for it.
        context.load_verify_locations(cadata=self.config.get("pin") or self.config["ca"])
        return context

    async def _open(self):
        if self.writer is not None:
            return
        try:
            if self.secure:
                name = self.config.get("server_name", self.host)
                self.reader, self.writer = await asyncio.open_connection(
                    self.host, self.port, ssl=self._context(), server_hostname=name
                )
            else:
                self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        except (OSError, ValueError) as error:
            self.writer = None
            raise TransportError("connect: %s" % error)

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
        kept = self.writer is not None
        try:
            return await asyncio.wait_for(self._ask_once(head, body, buffer), timeout_s)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            await self.close()
            if not kept or isinstance(error, asyncio.TimeoutError):
                raise TransportError(str(error) or type(error).__name__)
        # A kept connection may have been closed meanwhile: once more, on a fresh one.
        try:
            return await asyncio.wait_for(self._ask_once(head, body, buffer), timeout_s)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            await self.close()
            raise TransportError(str(error) or type(error).__name__)

    async def _ask_once(self, head, body, buffer):
        await self._open()
        writer, reader = self.writer, self.reader
        writer.write(head + b"Host: " + self.host.encode() + b"\r\n" + self.auth)
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body))
        if body:
            writer.write(body)
        await writer.drain()
        line = await reader.readline()
        parts = line.split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1."):
            raise OSError("no HTTP")
        status = int(parts[1])
        length, command, close = 0, False, False
        for _ in range(64):
            line = await reader.readline()
            if line == b"\r\n":
                break
            if not line.endswith(b"\n"):
                raise EOFError
            name, _, value = line.partition(b":")
            name = name.lower()
            if name == b"content-length":
                length = int(value)
            elif name == b"command":
                command = value.strip() == b"dfu"
            elif name == b"connection":
                close = value.strip().lower() == b"close"
        else:
            raise OSError("headers")
        if length > len(buffer):
            raise OSError("answer of %d bytes" % length)
        view = memoryview(buffer)
        got = 0
        while got < length:
            n = await reader.readinto(view[got:length])
            if not n:
                raise EOFError
            got += n
        if close:
            await self.close()
        return status, command, length

    async def status(self, message, wait_s, buffer):
        head = b"POST /v1/dfu?ct=%d HTTP/1.1\r\n" % wait_s
        status, command, length = await self._ask(head, message, buffer, wait_s + 30)
        if status == 200 and command:
            return length
        if status == 202:
            return 0
        raise (Denied if status == 403 else TransportError)("status %d" % status)

    async def enrol(self, message, buffer):
        status, _, _ = await self._ask(b"POST /v1/enrol HTTP/1.1\r\n", message, buffer, 60)
        if status != 200:
            raise (Denied if status == 403 else TransportError)("enrolment: status %d" % status)

    async def chunk(self, package, number, buffer):
        head = b"GET /v1/dfu/%s/%d HTTP/1.1\r\n" % (binascii.hexlify(package), number)
        status, _, length = await self._ask(head, b"", buffer, 60)
        if status == 200:
            return length
        raise (Gone if status == 404 else Denied if status == 403 else TransportError)("status %d" % status)
