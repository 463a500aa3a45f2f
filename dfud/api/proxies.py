"""Which proxies are believed when they say who asks: the key trusted_proxies of whatever listens."""

from __future__ import annotations

from collections.abc import Iterable

from dfud.errors import ConfigError
from dfud.model.address import Networks, networks


def trusted_proxies(section: str, texts: Iterable[str]) -> Networks:
    """Return the networks that [section] trusted_proxies names. Raises ConfigError."""
    try:
        return networks(texts)
    except ValueError as error:
        raise ConfigError(
            f"[{section}] trusted_proxies {str(error)!r}, expected an address or a network such as 10.0.0.0/8"
        ) from None
