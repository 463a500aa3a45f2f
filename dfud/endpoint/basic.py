"""Basic credentials in Drogue's forms (docs/drogue.md). Pure."""

from __future__ import annotations

import binascii
from urllib.parse import unquote

from dfud.api import Credentials

AUTHORIZATION_MAX_BYTES = 2048


def parse_basic_untrusted(credentials: Credentials) -> tuple[str, str, str | None, str] | None:
    """Return (app, device, username, password) as the header and the query parameters name them, or None.

    username None: the password is the device's own.
    """
    scheme, _, value = credentials.authorization.partition(b" ")
    if scheme.lower() != b"basic" or len(value) > AUTHORIZATION_MAX_BYTES:
        return None
    try:
        user, colon, password = binascii.a2b_base64(value.strip(), strict_mode=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    if not colon or not user:
        return None
    app, device = credentials.application, credentials.device
    if app and device:
        return app, device, user, password
    if app:
        return app, user, None, password
    name, at, of_app = user.partition("@")
    if not at:
        return None
    if device:
        return of_app, device, unquote(name), password
    return of_app, unquote(name), None, password
