"""Making a session: with which server, TLS, password.

Where `host` names several servers, the one that takes writes is used: a standby would answer with what was, and store nothing. They
are tried as RFC 8305 tries addresses: the next one a moment after the last, not when that has given up, since a machine without
power says nothing at all. The first that takes writes wins, and the others are hung up on.
"""

from __future__ import annotations

import ssl

import trio
from psycopg import Error as DriverError
from psycopg import pq
from psycopg.pq.abc import PGconn

from dfud_postgres.config import PostgresConfig, is_socket

NEXT_S = 0.25  # RFC 8305 section 8, Connection Attempt Delay


async def connect(config: PostgresConfig, name: str) -> PGconn:
    """Return a session that the caller finishes. name: shown by pg_stat_activity. Raises OSError with every reason, ConfigError."""
    found: list[PGconn] = []
    failed: list[str] = []
    try:
        with trio.move_on_after(config.connect_s) as scope:
            await _race(await _infos(config, name), found, failed)
    except BaseException:
        for pgconn in found:
            pgconn.finish()
        raise
    for pgconn in found[1:]:  # both at the same moment
        pgconn.finish()
    if not found:
        if scope.cancelled_caught:
            failed.append(f"no connection within {config.connect_s:g} s")
        raise OSError("; ".join(dict.fromkeys(failed)))
    return found[0]


async def _race(infos: list[bytes], found: list[PGconn], failed: list[str]) -> None:
    """Try one after the other until one is found."""
    async with trio.open_nursery() as nursery:

        async def attempt(info: bytes, ended: trio.Event) -> None:
            try:
                found.append(await _one(info))
                nursery.cancel_scope.cancel()
            except OSError as error:
                failed.append(str(error))
            finally:
                ended.set()

        for info in infos:
            ended = trio.Event()
            nursery.start_soon(attempt, info, ended)
            with trio.move_on_after(NEXT_S):
                await ended.wait()


async def _infos(config: PostgresConfig, name: str) -> list[bytes]:
    ways = [way for host in config.hosts for way in await _ways(host, config.port)]
    return [_conninfo(config, name, *way) for way in ways]


async def _ways(host: str, port: int) -> list[tuple[str, str]]:
    """Return the host with each of its addresses; libpq would look the name up in the foreground."""
    if is_socket(host):
        return [(host, "")]
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    return [(host, address) for address in dict.fromkeys(str(address[0]) for *_, address in found)]


async def _one(info: bytes) -> PGconn:
    try:
        pgconn = pq.PGconn.connect_start(info)
        try:
            await _log_in(pgconn)
        except BaseException:
            pgconn.finish()
            raise
    except DriverError as error:
        raise OSError(str(error).strip()) from error
    return pgconn


async def _log_in(pgconn: PGconn) -> None:
    while True:
        status = pgconn.connect_poll()
        if status == pq.PollingStatus.OK:
            return
        if status == pq.PollingStatus.FAILED or pgconn.status == pq.ConnStatus.BAD:
            raise OSError(pgconn.get_error_message().strip())
        if status == pq.PollingStatus.READING:
            await trio.lowlevel.wait_readable(pgconn.socket)
        else:
            await trio.lowlevel.wait_writable(pgconn.socket)


def _conninfo(config: PostgresConfig, name: str, host: str, address: str) -> bytes:
    given = {
        "host": host,
        "port": str(config.port),
        "dbname": config.database,
        "user": config.user,
        "application_name": name,
        "client_encoding": "UTF8",
        "sslmode": "disable" if config.tls == "off" or is_socket(host) else "verify-full",
        "gssencmode": "disable",
        "keepalives_idle": "5",
        "keepalives_interval": "2",
        "keepalives_count": "3",
        "tcp_user_timeout": "10000",
    }
    if address:
        given["hostaddr"] = address
    if len(config.hosts) > 1:
        given["target_session_attrs"] = "read-write"
    if given["sslmode"] != "disable":
        # The system's own bundle where there is one: the library brings an OpenSSL that looks elsewhere.
        given["sslrootcert"] = config.ca_file or ssl.get_default_verify_paths().cafile or "system"
    if config.certificate_file:
        given |= {"sslcert": config.certificate_file, "sslkey": config.key_file}
    if password := config.password():
        given["password"] = password
    return " ".join(f"{key}={_quoted(value)}" for key, value in given.items()).encode()


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
