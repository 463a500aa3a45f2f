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

import psutil
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
        self.port = 5432

    def _as(self) -> dict[str, str | int]:
        # initdb and the server refuse to run as root.
        return {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}

    def init(self, *options: str) -> None:
        """options: more of them for initdb."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            shutil.chown(self.directory, "nobody", "nogroup")
        command = [self._bin / "initdb", "-D", self.data, "-U", "admin", "--auth=trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, **self._as())  # type: ignore[call-overload]
        self.configure()

    def copy(self, primary: Server) -> None:
        """Become a standby of `primary`, which runs: a base backup, then its log as it is written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            shutil.chown(self.directory, "nobody", "nogroup")
        source = ["-h", primary.directory, "-p", str(primary.port), "-U", "admin"]
        command = [require("pg_basebackup"), *source, "-D", self.data, "-R", "-X", "stream", "-c", "fast"]
        subprocess.run(command, check=True, **self._as())  # type: ignore[call-overload]
        self.configure()

    def wait_for_standby(self) -> None:
        """From now on, nothing is answered before a standby has it, too; return when one has caught up."""
        self.run("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.run("SELECT pg_reload_conf()")
        deadline = time.monotonic() + START_S
        while not self.run("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
            assert time.monotonic() < deadline, "no standby has caught up"
            time.sleep(0.05)

    def promote(self) -> None:
        assert self.run("SELECT pg_promote()") == [(True,)]

    def own(self, path: Path) -> None:
        """Give a file to the server alone."""
        path.chmod(0o600)
        if os.getuid() == 0:
            shutil.chown(path, "nobody", "nogroup")

    def configure(self, more: str = "") -> None:
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(
                f"unix_socket_directories = '{self.directory}'\nlisten_addresses = ''\nmax_connections = 100\n"
                "dynamic_shared_memory_type = mmap\n"  # in its directory, which goes: a killed one leaves nothing in /dev/shm
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
            everybody = _family(process.pid) if process.poll() is None else []
            for one in everybody:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()
            # They share memory with what follows until they are gone.
            psutil.wait_procs(everybody, timeout=START_S)
        else:
            process.send_signal(how)
            process.wait()

    @property
    def exit_code(self) -> int | None:
        """Of a server that has ended by itself."""
        return self._process.poll() if self._process is not None else None

    def pause(self, how: signal.Signals) -> None:
        """SIGSTOP or SIGCONT to the whole server."""
        assert self._process is not None
        for one in _family(self._process.pid):
            one.send_signal(how)

    def admin(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            f"host={self.directory} port={self.port} user=admin dbname={database}", autocommit=True
        )

    def run(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with self.admin(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description is not None else []


def _family(pid: int) -> list[psutil.Process]:
    """Return the server and its processes; each of them has a session of its own."""
    server = psutil.Process(pid)
    return [server, *server.children(recursive=True)]


@contextlib.contextmanager
def running(settings: str = "", directory: Path | None = None) -> Iterator[Server]:
    """Start a server of one's own. directory: an empty one; else one in memory, if there can be."""
    with _made(settings, directory) as server:
        server.init()
        server.start()
        yield server


@contextlib.contextmanager
def standby(primary: Server) -> Iterator[Server]:
    """Start a standby, for which the primary waits with every answer."""
    with _made("", None) as server:
        server.copy(primary)
        server.start()
        primary.wait_for_standby()
        yield server


@contextlib.contextmanager
def _made(settings: str, directory: Path | None) -> Iterator[Server]:
    memory = Path("/dev/shm")
    directory = directory or Path(tempfile.mkdtemp(prefix="dfud-pg-", dir=memory if os.access(memory, os.W_OK) else None))
    server = Server(directory, settings)
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


def config_for(directory: Path, socket: str = "", port: int = 5432, **more: object) -> PostgresConfig:
    """Return the section for the database that belongs to a directory; make it if it is not there, owned by a role without rights."""
    socket = socket or os.environ[SOCKET]
    name = "t" + hashlib.sha256(str(directory).encode()).hexdigest()[:24]
    _make(socket, port, name)
    given: dict[str, object] = {"host": socket, "port": port, "database": name, "user": "dfud"}
    given["blobs_path"] = str(directory / "blobs")
    return PostgresConfig(**(given | more))  # type: ignore[arg-type]


def forget(server: Server) -> None:
    """Drop the databases that tests have made."""
    _make.cache_clear()
    for (name,) in server.run("SELECT datname FROM pg_database WHERE datname LIKE 't%' AND length(datname) = 25"):
        server.run(f"DROP DATABASE {name} WITH (FORCE)")


@functools.cache
def _make(socket: str, port: int, name: str) -> None:
    with psycopg.connect(f"host={socket} port={port} user=admin dbname=postgres", autocommit=True) as admin:
        with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            admin.execute("CREATE ROLE dfud LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE")
        with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            admin.execute(f"CREATE DATABASE {name} OWNER dfud TEMPLATE template0 ENCODING 'UTF8'".encode())


def certificate(directory: Path, *names: str) -> None:
    """Make a self-signed certificate for names: `first`.crt, `first`.key."""
    also = ",".join(f"DNS:{name}" for name in names)
    subject = ["-subj", f"/CN={names[0]}", "-addext", f"subjectAltName={also}"]
    files = ["-keyout", str(directory / f"{names[0]}.key"), "-out", str(directory / f"{names[0]}.crt")]
    command = [require("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run([*command, *subject, *files], check=True, capture_output=True)
