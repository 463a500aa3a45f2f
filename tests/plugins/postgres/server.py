"""A real PostgreSQL in a temporary directory, for one run of tests: one server, a database for each test."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from dfud_postgres.config import PostgresConfig

from tests.real_parts import require

START_S = 60.0
SOCKET = "DFUD_TEST_POSTGRES"  # where programs of tests find the server's socket


class Server:
    """Owns a cluster in `directory`. settings: lines for postgresql.conf beside ours."""

    def __init__(self, directory: Path, settings: str = "") -> None:
        self.directory = directory
        self.data = directory / "data"
        self._bin = Path(require("postgres")).parent
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = settings

    def _as(self) -> dict[str, str | int]:
        # initdb and the server refuse to run as root.
        return {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}

    def init(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            shutil.chown(self.directory, "nobody", "nogroup")
        command = [self._bin / "initdb", "-D", self.data, "-U", "admin", "--auth=trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self._as())  # type: ignore[call-overload]
        self.configure()

    def configure(self, more: str = "") -> None:
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(
                f"unix_socket_directories = '{self.directory}'\nlisten_addresses = ''\nmax_connections = 100\n"
                "fsync = off\nfull_page_writes = off\nautovacuum = off\nshared_buffers = 32MB\nlog_min_messages = fatal\n"
                f"{self._settings}\n{more}\n"
            )

    def start(self) -> None:
        log = (self.directory / "log").open("ab")
        with log:
            self._process = subprocess.Popen(  # type: ignore[call-overload]
                [self._bin / "postgres", "-D", self.data], stdout=log, stderr=log, start_new_session=True, **self._as()
            )
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(psycopg.OperationalError), self.admin():
                return
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.directory / "log").read_text()[-2000:])
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: fast shutdown. SIGKILL: as a crash, all of its processes."""
        process, self._process = self._process, None
        if process is None:
            return
        if how is signal.SIGKILL:
            os.killpg(process.pid, how)
            process.wait()
            # The children share memory with what follows until they are gone.
            deadline = time.monotonic() + START_S
            while _group_lives(process.pid) and time.monotonic() < deadline:
                time.sleep(0.02)
        else:
            process.send_signal(how)
            process.wait()

    def pause(self, how: signal.Signals) -> None:
        """SIGSTOP or SIGCONT to the whole server."""
        assert self._process is not None
        os.killpg(self._process.pid, how)

    def admin(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(f"host={self.directory} user=admin dbname={database}", autocommit=True)

    def run(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with self.admin(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description is not None else []


def _group_lives(group: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                return True
    return False


@contextlib.contextmanager
def running(settings: str = "") -> Iterator[Server]:
    """Start a server of one's own."""
    directory = Path(tempfile.mkdtemp(prefix="dfud-pg-"))
    server = Server(directory, settings)
    try:
        server.init()
        server.start()
        yield server
    finally:
        server.stop(signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


def config_for(directory: Path, socket: str = "", **more: object) -> PostgresConfig:
    """Return the section for the database that belongs to a directory; make it if it is not there, owned by a role without rights."""
    socket = socket or os.environ[SOCKET]
    name = "t" + hashlib.sha256(str(directory).encode()).hexdigest()[:24]
    _make(socket, name)
    given: dict[str, object] = {"host": socket, "database": name, "user": "dfud", "blobs_path": str(directory / "blobs")}
    return PostgresConfig(**(given | more))  # type: ignore[arg-type]


@functools.cache
def _make(socket: str, name: str) -> None:
    with psycopg.connect(f"host={socket} user=admin dbname=postgres", autocommit=True) as admin:
        with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            admin.execute("CREATE ROLE dfud LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE")
        with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            admin.execute(f"CREATE DATABASE {name} OWNER dfud TEMPLATE template0 ENCODING 'UTF8'".encode())
