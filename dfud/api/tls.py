"""TLS as every listener of dfud speaks it."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from dfud.errors import ConfigError

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # with forward secrecy and authenticated; TLS 1.3 has no others


def server_context(
    section: str,
    certificate: str,
    key: str = "",
    *,
    client_ca: str = "",
    client_required: bool = False,
    protocols: Sequence[str] = (),
) -> ssl.SSLContext:
    """Return a server's context: TLS 1.2 and 1.3, the certificate chain of the PEM file and its key.

    section: the section of dfud.toml that an error names. client_ca: PEM file of the CA of client certificates, which are
    asked for then. protocols: for ALPN. Raises ConfigError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.num_tickets = 1  # a device has one connection to resume
    if protocols:
        context.set_alpn_protocols(list(protocols))
    try:
        context.load_cert_chain(certificate, key or None)
        if client_ca:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"[{section}] certificate {certificate}: {error}") from error
    return context
