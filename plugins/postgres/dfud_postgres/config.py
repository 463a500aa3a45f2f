"""The section [store.postgres]: where the database is, who dfud is there, and how much it may have of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

from dfud.api import ConfigError, is_loopback

Meta = msgspec.Meta
S = {"unit": "s"}


def is_socket(host: str) -> bool:
    return host.startswith("/")


class PostgresConfig(msgspec.Struct, frozen=True):
    host: Annotated[
        str,
        Meta(
            description="name or address of the server, or the directory of its Unix socket; several with commas between "
            "them are a primary and its standbys: the one that takes writes is used",
            min_length=1,
        ),
    ] = "/run/postgresql"
    port: Annotated[int, Meta(description="port of the server or servers, also of a Unix socket", ge=1, le=65535)] = (
        5432
    )
    database: Annotated[str, Meta(description="name of the database; its encoding must be UTF8")] = "dfud"
    user: Annotated[str, Meta(description="role to log in as; it owns dfud's tables and needs no other right")] = "dfud"
    password_file: Annotated[
        str,
        Meta(
            description='file with the password; a name without "/" is a credential of the systemd unit; "": none is needed'
        ),
    ] = ""
    tls: Annotated[
        str,
        Meta(
            description="verify: TLS, and the server's certificate must be for `host`; off: for a socket or the loopback",
            pattern="^(verify|off)$",
        ),
    ] = "verify"
    ca_file: Annotated[
        str, Meta(description='PEM file of the CA of the server\'s certificate; "": those of the system')
    ] = ""
    certificate_file: Annotated[str, Meta(description='PEM file of a client certificate; "": none')] = ""
    key_file: Annotated[str, Meta(description="PEM file of the client certificate's key")] = ""
    connections: Annotated[
        int, Meta(description="connections that read at a time; three more write, listen and lead", ge=1, le=200)
    ] = 8
    connect_s: Annotated[float, Meta(description="time to connect in", ge=0.1, le=60, extra=S)] = 5.0
    wait_s: Annotated[
        float, Meta(description="how long a read waits for a free connection", ge=0.1, le=60, extra=S)
    ] = 5.0
    statement_s: Annotated[
        float, Meta(description="time that one statement has; the server ends it then", ge=0.1, le=600, extra=S)
    ] = 15.0
    history_per_device: Annotated[
        int, Meta(description="entries of a device's history that are kept", ge=1, le=1_000_000)
    ] = 200
    deployments_per_device: Annotated[
        int, Meta(description="finished deployments of a device that are kept", ge=1, le=100_000)
    ] = 20
    blobs: Annotated[
        str, Meta(description="where images are: directory, or the name that another plugin gives its place (s3)")
    ] = "directory"
    blobs_path: Annotated[
        str, Meta(description="with blobs = directory: a directory that all dfud on this database share")
    ] = "var/dfud-blobs"

    @property
    def hosts(self) -> list[str]:
        return [host.strip() for host in self.host.split(",")]

    def check(self) -> None:
        """Raise ConfigError for what cannot be right."""
        for host in self.hosts:
            if not host:
                raise ConfigError(
                    f"[store.postgres] host {self.host!r}: an empty name, expected names with commas between them"
                )
            if self.tls == "off" and not is_socket(host) and not is_loopback(host):
                raise ConfigError(
                    f"[store.postgres] tls off with host {host}: expected verify: "
                    "else passwords and records are open to the network"
                )
        if bool(self.certificate_file) != bool(self.key_file):
            raise ConfigError("[store.postgres] certificate_file and key_file: expected both or none")
        self.password()

    def password(self) -> str:
        """Read the password. Raises ConfigError that names the file and never the password."""
        if not self.password_file:
            return ""
        path = Path(self.password_file)
        if "/" not in self.password_file:
            directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
            if not directory:
                raise ConfigError(
                    f"[store.postgres] password_file {self.password_file}: no path, and this is no systemd unit with "
                    "LoadCredential=, expected one of them"
                )
            path = Path(directory) / path
        try:
            text = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise ConfigError(f"[store.postgres] password_file {path}: {reason}") from error
        if not text:
            raise ConfigError(f"[store.postgres] password_file {path} is empty, expected the password")
        return text
