"""What https needs beside http: a judge of the server's certificate, and a clock. Loaded for a connection only."""

import asyncio
import ssl
from time import gmtime

YEAR_MIN = 2024  # before this nobody has set the clock


async def connect(t):
    """Return reader and writer of a dfu.http.HttpTransport. Raises OSError, ValueError."""
    config = t.config
    # Stock builds compare a certificate's dates with the clock, which stands at its beginning after a power-on.
    clock = config.get("set_clock")
    if clock is not None and gmtime()[0] < YEAR_MIN:
        clock()
    if t.context is None:
        # Kept: pieces of its size are hard to find once an application runs.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_mode = ssl.CERT_REQUIRED
        # A self-signed certificate is its own authority: nobody but the holder of its key can answer for it.
        context.load_verify_locations(cadata=config.get("pin") or config["ca"])
        t.context = context
    try:
        return await asyncio.open_connection(t.host, t.port, ssl=t.context, server_hostname=config.get("server_name", t.host))
    except (OSError, ValueError) as error:
        if gmtime()[0] < YEAR_MIN:
            raise OSError("%s; the clock says %d, no certificate is valid then: set it first, see set_clock" % (error, gmtime()[0]))
        raise
