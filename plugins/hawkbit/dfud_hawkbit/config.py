"""The section [store.hawkbit]."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from dfud.api import ConfigError

Meta = msgspec.Meta
S = {"unit": "s"}


class HawkbitConfig(msgspec.Struct, frozen=True):
    url: Annotated[str, Meta(description="where hawkBit is, without a path")] = "http://127.0.0.1:8080"
    tenant: Annotated[str, Meta(description="hawkBit's tenant")] = "DEFAULT"
    user: Annotated[str, Meta(description="user of the Management API; with several tenants TENANT\\\\user")] = "admin"
    password_file: Annotated[str, Meta(description="file with that user's password")] = "hawkbit.password"  # noqa: S105 - a file
    gateway_token_file: Annotated[
        str, Meta(description="file with the tenant's gateway token (authentication.gatewaytoken.key)")
    ] = "hawkbit.gateway-token"  # noqa: S105 - a file
    ca_file: Annotated[
        str, Meta(description="PEM file of the CA that signed hawkBit's certificate; empty: public CAs")
    ] = ""
    records: Annotated[str, Meta(description="store that keeps what hawkBit cannot hold, and the cache")] = "local"
    poll_s: Annotated[float, Meta(description="how often hawkBit is asked what changed", ge=0.05, le=3600, extra=S)] = (
        5.0
    )
    overlap_s: Annotated[
        float,
        Meta(description="how far each of these questions reaches back; rows appear late", ge=120, le=3600, extra=S),
    ] = 120.0
    resync_s: Annotated[
        float,
        Meta(description="how often all open actions are listed: deletions show nowhere else", ge=1, le=86400, extra=S),
    ] = 900.0
    window_s: Annotated[
        float,
        Meta(
            description="how often an action that waits for its maintenance window, or to be confirmed, is looked at",
            ge=0.1,
            le=3600,
            extra=S,
        ),
    ] = 60.0
    feedback_s: Annotated[
        float,
        Meta(description="shortest time between two intermediate feedbacks of one action", ge=0, le=3600, extra=S),
    ] = 10.0
    feedback_max: Annotated[
        int, Meta(description="intermediate feedbacks of one action; the last one always goes", ge=1, le=900)
    ] = 50
    attributes_s: Annotated[
        float, Meta(description="shortest time between two writes of one device's attributes", ge=0, le=86400, extra=S)
    ] = 300.0
    seen_per_s: Annotated[
        float, Meta(description="devices whose last contact is passed on in a second; 0: none", ge=0, le=1000)
    ] = 5.0
    retry_s: Annotated[
        float, Meta(description="first wait when hawkBit is away; doubled", ge=0.05, le=3600, extra=S)
    ] = 1.0
    retry_max_s: Annotated[float, Meta(description="longest wait when hawkBit is away", ge=0.05, le=3600, extra=S)] = (
        60.0
    )
    timeout_s: Annotated[
        float,
        Meta(
            description="time hawkBit has for a whole answer; for each part of an upload or a download",
            ge=0.1,
            le=600,
            extra=S,
        ),
    ] = 10.0
    connections: Annotated[int, Meta(description="requests to hawkBit at the same time", ge=1, le=64)] = 8
    module_type: Annotated[str, Meta(description="key of the software module type that holds our image")] = "os"
    set_type: Annotated[str, Meta(description="key of the distribution set type that dfud makes")] = "os"
    artifact: Annotated[str, Meta(description="pattern of the file name that is our image")] = "*.bin"
    hardware: Annotated[
        str, Meta(description="hardware of an unsigned image whose module does not say it (metadata dfud.hardware)")
    ] = "esp32c3"

    def secrets(self) -> tuple[str, str]:
        """Return (password, gateway token). Raises ConfigError."""
        return _secret("password_file", self.password_file), _secret("gateway_token_file", self.gateway_token_file)

    def check(self) -> None:
        """Raise ConfigError for a URL that cannot be right."""
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"[store.hawkbit] url {self.url!r}: expected http:// or https://")


def _secret(key: str, path: str) -> str:
    try:
        text = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"[store.hawkbit] {key} {path}: {reason}") from error
    if not text:
        raise ConfigError(f"[store.hawkbit] {key} {path} is empty")
    return text
