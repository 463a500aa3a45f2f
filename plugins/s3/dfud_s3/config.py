"""The section [blobs.s3]."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

from dfud.api import ConfigError

Meta = msgspec.Meta
S = {"unit": "s"}


class S3Config(msgspec.Struct, frozen=True):
    endpoint: Annotated[str, Meta(description='URL of the service; "": Amazon\'s of the region')] = ""
    region: Annotated[str, Meta(description="region that requests are signed for")] = "us-east-1"
    bucket: Annotated[str, Meta(description="bucket, which exists", min_length=3, max_length=63)] = "dfud"
    prefix: Annotated[str, Meta(description="what the names of all objects begin with", max_length=200)] = "blobs/"
    style: Annotated[
        str,
        Meta(description="path: bucket in the path; virtual: bucket in the host name", pattern="^(path|virtual)$"),
    ] = "path"
    access_key: Annotated[str, Meta(description="access key ID")] = ""
    secret_file: Annotated[
        str,
        Meta(description='file with the secret access key; a name without "/" is a credential of the systemd unit'),
    ] = "/etc/dfud/s3.secret"  # noqa: S105 - a path
    ca_file: Annotated[
        str, Meta(description='PEM file of the CA of the service\'s certificate; "": the usual ones')
    ] = ""
    timeout_s: Annotated[
        float, Meta(description="time to connect, and for each part of an answer", ge=0.1, le=600, extra=S)
    ] = 10.0
    connections: Annotated[int, Meta(description="requests at a time", ge=1, le=64)] = 8
    cache_path: Annotated[str, Meta(description="directory of this dfud alone for images that are in use")] = (
        "var/dfud-s3"
    )
    cache_max_bytes: Annotated[
        int,
        Meta(description="what that directory keeps when nobody uses it", ge=0, extra={"unit": "bytes"}),
    ] = 1 << 30

    def check(self) -> None:
        """Raise ConfigError for what cannot be right."""
        if self.endpoint and not self.endpoint.startswith(("https://", "http://")):
            raise ConfigError(f"[blobs.s3] endpoint {self.endpoint!r}: expected https:// or http://")
        if not self.access_key:
            raise ConfigError("[blobs.s3] access_key is empty, expected the access key ID")
        self.secret()

    def secret(self) -> str:
        """Read the secret access key. Raises ConfigError that names the file and never what is in it."""
        path = Path(self.secret_file)
        if "/" not in self.secret_file:
            path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/run/credentials/dfud.service")) / path
        try:
            text = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise ConfigError(f"[blobs.s3] secret_file {path}: {reason}") from error
        if not text:
            raise ConfigError(f"[blobs.s3] secret_file {path} is empty, expected the secret access key")
        return text
