"""What the store does when PostgreSQL dies, hangs, refuses or forgets, on a real one."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import trio
from dfud_postgres.config import PostgresConfig
from dfud_postgres.connection import COMMIT, Connection, Result
from dfud_postgres.errors import Lost
from dfud_postgres.store import PATIENCE_S, PostgresStore
from dfud_postgres.wire import Query
from trio.testing import MockClock

from dfud.api import (
    AddCounts,
    Bus,
    ConfigError,
    DeviceChanged,
    Missed,
    PutApp,
    PutDevice,
    PutDocument,
    StoreError,
)
from dfud.testing.ports import KeptPort
from dfud.testing.store import a_device, an_app
from tests.cluster.wire import Wire
from tests.plugins.postgres.server import Server, certificate, config_for, running, standby
from tests.real_parts import require

LATEST_S = 120.0  # for a test to fail, not what is promised
KILLS = 3
QUICK: dict[str, Any] = {"connect_s": 2.0, "wait_s": 1.0, "statement_s": 1.0}


@pytest.fixture
def own() -> Iterator[Server]:
    """A server that a test may kill."""
    with running() as server:
        yield server


@asynccontextmanager
async def opened(config: PostgresConfig, bus: Bus | None = None) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(config)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, bus or Bus())
        yield store
        nursery.cancel_scope.cancel()


async def again(store: PostgresStore) -> None:
    """Return when the store stores and reads again."""
    with trio.fail_after(LATEST_S):
        while True:
            with suppress(StoreError):
                await store.commit([PutDocument("again", "k", b"")])
                await store.document("again", "k")
                return
            await trio.sleep(0.1)


async def found_well(store: PostgresStore) -> None:
    """Return when the store says that it can serve, though nobody has asked it for anything."""
    with trio.fail_after(LATEST_S):
        while store.problem():
            await trio.sleep(0.05)


async def read_again(store: PostgresStore) -> bytes | None:
    """Return what is stored under c, k as soon as the store reads."""
    with trio.fail_after(LATEST_S):
        while True:
            try:
                return await store.document("c", "k")
            except StoreError as error:
                if not error.retryable:
                    raise
            await trio.sleep(0.1)


async def test_nothing_answered_is_lost_when_the_server_is_killed_under_load(own: Server, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    answered: list[str] = []
    refused: list[str] = []
    async with opened(config_for(tmp_path, str(own.directory))) as store:

        async def work(number: int) -> None:
            step = 0
            while True:
                step += 1
                key = f"{number}-{step}"
                try:
                    await store.commit([PutDocument("c", key, b"", create=True), AddCounts("s", {"n": 1})])
                    answered.append(key)
                except StoreError as error:
                    refused.append(key)
                    if not error.retryable:
                        raise
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(work, number)
            for _ in range(KILLS):
                begun = len(answered)
                with trio.fail_after(LATEST_S):
                    while len(answered) < begun + 50:
                        await trio.sleep(0.01)
                await trio.sleep(rng.random() * 0.05)
                await trio.to_thread.run_sync(own.stop, signal.SIGKILL)
                await trio.to_thread.run_sync(own.start)
            await again(store)
            nursery.cancel_scope.cancel()
        await again(store)
        stored = {key for key, _ in await store.documents("c", limit=1_000_000)}
        assert set(answered) <= stored, f"seed {seed}: answered and lost"
        assert (await store.counts("s"))["n"] == len(stored), f"seed {seed}: half of a commit, or one twice"
        assert len(stored) <= len(answered) + len(refused) + 8
        assert store.problem() == ""


@pytest.mark.parametrize("done", [True, False], ids=["it was done", "it was not"])
async def test_a_commit_whose_answer_is_lost_is_done_once(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """The server is asked what became of it: what was done is not done twice, what was not is done again."""
    run, lost = Connection.run, 0

    async def losing(self: Connection, *statements: tuple[Query, Sequence[Any]]) -> list[Result]:
        nonlocal lost
        if statements == ((COMMIT, ()),) and lost < 2:
            lost += 1
            if done:
                await run(self, *statements)
            self.close()
            raise Lost("the network is cut")
        return await run(self, *statements)

    async with opened(config_for(tmp_path)) as store:
        await store.commit([AddCounts("s", {"n": 1})])
        monkeypatch.setattr(Connection, "run", losing)
        await store.commit([AddCounts("s", {"n": 1})])
        assert await store.counts("s") == {"n": 2} and lost == (1 if done else 2)


async def test_a_process_that_starts_before_the_database_waits_for_it(
    own: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(tmp_path, str(own.directory))
    await trio.to_thread.run_sync(own.stop)
    store = PostgresStore(config)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(LATEST_S):
            async with trio.open_nursery() as starting:
                starting.start_soon(nursery.start, store.run, Bus())
                while "waits for the database" not in caplog.text:
                    await trio.sleep(0.05)
                await trio.to_thread.run_sync(own.start)
            await store.commit([PutDocument("c", "k", b"v")])
        nursery.cancel_scope.cancel()


async def test_a_process_whose_database_does_not_come_gives_up_and_says_so(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    began_s = trio.current_time()
    with pytest.raises(StoreError, match="cannot be opened") as refused:
        await PostgresStore(PostgresConfig(host=str(tmp_path), blobs_path=str(tmp_path / "blobs"))).run(Bus())
    assert refused.value.retryable
    assert trio.current_time() - began_s >= PATIENCE_S


async def test_reads_that_are_cancelled_mix_nothing_up(postgres: Server, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    async with opened(config_for(tmp_path, connections=3)) as store:
        await store.commit([PutDocument("c", str(n), str(n).encode()) for n in range(50)])

        async def read() -> None:
            for _ in range(40):
                number = rng.randrange(50)
                with trio.move_on_after(rng.choice((0.0, 0.0001, 0.001, 1.0))):
                    assert await store.document("c", str(number)) == str(number).encode(), f"seed {seed}"

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(read)
        assert await store.document("c", "7") == b"7"
        assert store.counters()["dfud_postgres_connections_in_use"] == 0


async def test_a_server_that_hangs_costs_its_callers_a_bounded_time(own: Server, tmp_path: Path) -> None:
    async with opened(config_for(tmp_path, str(own.directory), **QUICK)) as store:
        await again(store)  # its times are short: a busy server may need a second attempt
        own.pause(signal.SIGSTOP)
        try:
            with trio.fail_after(LATEST_S):
                with pytest.raises(StoreError) as read:
                    await store.document("c", "k")
                with pytest.raises(StoreError) as written:
                    await store.commit([PutDocument("c", "k", b"w")])
            assert read.value.retryable and written.value.retryable
            assert store.problem()
        finally:
            own.pause(signal.SIGCONT)
        await found_well(store)
        await again(store)


async def test_without_a_free_connection_a_read_is_refused_in_time(own: Server, tmp_path: Path) -> None:
    config = config_for(tmp_path, str(own.directory), wait_s=1.0)
    async with opened(config) as store:
        await store.commit([PutDocument("c", "k", b"v")])
        own.run("ALTER ROLE dfud CONNECTION LIMIT 1")  # those that it has stay
        pool = store._open_pool
        assert pool is not None

        async def read() -> None:
            while True:
                pool.drop()  # what the store was just reading with comes back later
                await store.document("c", "k")

        with trio.fail_after(LATEST_S), pytest.raises(StoreError, match="too many connections") as refused:
            await read()
        assert refused.value.retryable and "too many connections" in store.problem()
        await store.commit([PutDocument("c", "k", b"w")])  # the writer has its own
        own.run("ALTER ROLE dfud CONNECTION LIMIT -1")
        await again(store)


async def test_a_database_that_is_read_only_refuses_and_goes_on_when_it_is_not(own: Server, tmp_path: Path) -> None:
    config = config_for(tmp_path, str(own.directory))
    async with opened(config) as store:
        await store.commit([PutDocument("c", "k", b"v")])
        own.run(f"ALTER DATABASE {config.database} SET default_transaction_read_only = on")
        own.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'dfud'")
        with trio.fail_after(LATEST_S), pytest.raises(StoreError, match="read-only") as refused:
            await store.commit([PutDocument("c", "k", b"w")])
        assert refused.value.retryable and "read-only" in store.problem()
        # A session that was ended while it was being opened has reads refused for a second.
        assert await read_again(store) == b"v", "what can be read is"
        own.run(f"ALTER DATABASE {config.database} RESET default_transaction_read_only")
        await found_well(store)
        await again(store)


async def test_a_session_that_is_lost_has_everything_forgotten_and_leads_end(own: Server, tmp_path: Path) -> None:
    bus, missed, heard = Bus(), trio.Event(), trio.Event()
    config = config_for(tmp_path, str(own.directory))
    bus.subscribe(Missed, lambda e: missed.set())
    bus.subscribe(DeviceChanged, lambda e: heard.set())
    async with opened(config, bus) as store, opened(config) as other:
        await other.commit([PutApp(an_app())])
        with trio.fail_after(LATEST_S):
            async with store.lead("w"):
                own.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'dfud'")
                await trio.sleep_forever()  # it is cancelled, and ends without an error
            await missed.wait()
            while not heard.is_set():
                with suppress(StoreError):
                    await other.commit([PutDevice(a_device())])
                await trio.sleep(0.1)
            async with store.lead("w"):
                pass


async def test_of_several_servers_the_one_that_takes_writes_is_used(own: Server, tmp_path: Path) -> None:
    """The first says nothing, as a machine without power; the second is a standby until it is promoted."""
    made = config_for(tmp_path, str(own.directory))
    with standby(own) as second:
        silent = Wire(own.directory / ".s.PGSQL.5432", "127.0.0.1")
        silent.silence()
        ways = [silent, *(Wire(s.directory / ".s.PGSQL.5432", f"127.0.0.{n}", silent.port) for n, s in ((2, second), (3, own)))]
        config = msgspec.structs.replace(made, host="127.0.0.1,127.0.0.2, 127.0.0.3", port=silent.port, tls="off")
        async with trio.open_nursery() as nursery:
            for way in ways:
                nursery.start_soon(way.run)
            async with opened(config) as store:
                await store.commit([PutDocument("c", "k", b"v")])
                own.stop(signal.SIGKILL)
                with pytest.raises(StoreError, match="read-only") as refused:
                    await store.document("c", "k")  # a standby does not answer for the primary
                assert refused.value.retryable
                second.promote()
                await again(store)
                assert await store.document("c", "k") == b"v"
            nursery.cancel_scope.cancel()


async def test_through_pgbouncer_in_session_mode(postgres: Server, tmp_path: Path) -> None:
    bouncer = require("pgbouncer")
    config = config_for(tmp_path)
    directory = postgres.directory / "bouncer"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    (directory / "users").write_text('"dfud" ""\n')
    (directory / "ini").write_text(
        f"[databases]\n* = host={config.host}\n[pgbouncer]\nunix_socket_dir = {directory}\nlisten_addr =\nlisten_port = 6432\n"
        f"auth_type = trust\nauth_file = {directory}/users\npool_mode = session\ndefault_pool_size = 20\n"
        f"logfile = {directory}/log\npidfile = {directory}/pid\n"
    )
    with subprocess.Popen([bouncer, str(directory / "ini")], user="nobody", stderr=subprocess.DEVNULL) as process:
        try:
            with trio.fail_after(LATEST_S):
                while not (directory / ".s.PGSQL.6432").exists():
                    await trio.sleep(0.05)
            through = PostgresConfig(
                host=str(directory), port=6432, database=config.database, blobs_path=str(tmp_path / "blobs")
            )
            bus, heard = Bus(), trio.Event()
            bus.subscribe(DeviceChanged, lambda e: heard.set())
            async with opened(through, bus) as store, opened(config) as other:
                await store.commit([PutApp(an_app())])
                await other.commit([PutDevice(a_device())])
                with trio.fail_after(LATEST_S):
                    await heard.wait()
                    async with store.lead("w"):
                        assert await store.app("app1") == an_app()
        finally:
            process.terminate()


async def test_tls_is_verified_and_the_password_comes_from_its_file(tmp_path: Path) -> None:
    kept = KeptPort()
    port = kept.number
    certificate(tmp_path, "localhost")
    certificate(tmp_path, "other.example")
    with running() as server:
        for suffix in ("crt", "key"):
            path = server.directory / f"server.{suffix}"
            path.write_bytes((tmp_path / f"localhost.{suffix}").read_bytes())
            server.own(path)
        server.stop()
        server.configure(
            f"listen_addresses = 'localhost'\nport = {port}\nssl = on\n"
            f"ssl_cert_file = '{server.directory}/server.crt'\nssl_key_file = '{server.directory}/server.key'"
        )
        (server.data / "pg_hba.conf").write_text("local all all trust\nhostssl all dfud all scram-sha-256\n")
        server.port = port
        server.start()
        made = config_for(tmp_path, str(server.directory), port=port)
        server.run("ALTER ROLE dfud PASSWORD 'over there'")
        (tmp_path / "password").write_text("over there\n")
        given: dict[str, Any] = {
            "host": "localhost",
            "port": port,
            "database": made.database,
            "password_file": str(tmp_path / "password"),
            "blobs_path": str(tmp_path / "blobs"),
        }
        async with opened(PostgresConfig(ca_file=str(tmp_path / "localhost.crt"), **given)) as store:
            await store.commit([PutDocument("c", "k", b"v")])
            counts = "SELECT count(*), count(*) FILTER (WHERE ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            ((sessions, by_tls),) = server.run(f"{counts} WHERE usename = 'dfud'")
            assert by_tls == sessions and int(str(by_tls)) >= 1
        for wrong in ("other.example.crt", ""):
            ca = str(tmp_path / wrong) if wrong else ""
            with pytest.raises(StoreError, match="certificate") as refused:
                await PostgresStore(PostgresConfig(ca_file=ca, **given)).check()
            assert not refused.value.retryable, "it is a fault of the configuration, not away"
        right = given | {"ca_file": str(tmp_path / "localhost.crt")}
        with pytest.raises(StoreError, match='database "elsewhere" does not exist') as refused:
            await PostgresStore(PostgresConfig(**right | {"database": "elsewhere"})).check()
        assert not refused.value.retryable
        (tmp_path / "password").write_text("guessed")
        with pytest.raises(StoreError, match="password") as refused:
            await PostgresStore(PostgresConfig(**right)).check()
        assert not refused.value.retryable
        assert "guessed" not in str(refused.value)
        with pytest.raises(StoreError, match="password") as refused:
            await PostgresStore(PostgresConfig(**right)).run(Bus())
        assert not refused.value.retryable, "nobody waits for a password to become right"
        server.stop()
        with pytest.raises(StoreError) as refused:
            await PostgresStore(PostgresConfig(**right)).check()
        assert refused.value.retryable


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tls": "off", "host": "db.example"}, "expected verify"),
        ({"tls": "off", "host": "/run/postgresql, db.example"}, "host db.example: expected verify"),
        ({"host": "db1.example,,db2.example"}, "an empty name"),
        ({"certificate_file": "x"}, "both or none"),
        ({"password_file": "/nowhere/at/all"}, "password_file /nowhere/at/all: No such file"),
        ({"password_file": "dfud-password"}, "LoadCredential"),
    ],
)
async def test_a_section_that_cannot_be_right_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], message: str
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match=message):
        await PostgresStore(PostgresConfig(**given)).check()  # type: ignore[arg-type]


async def test_the_role_needs_no_other_right_and_a_newer_database_is_refused(postgres: Server, tmp_path: Path) -> None:
    config = config_for(tmp_path)
    async with opened(config) as store:
        await store.check()
    columns = "rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
    rights = postgres.run(f"SELECT {columns} FROM pg_roles WHERE rolname='dfud'")
    assert rights == [(False,) * 5]
    with psycopg.connect(f"host={config.host} user=dfud dbname={config.database}", autocommit=True) as connection:
        connection.execute("UPDATE dfud_schema SET version = 99")
    with pytest.raises(StoreError, match="schema version 99, this dfud knows up to"):
        await PostgresStore(config).check()
    with pytest.raises(StoreError, match="schema version 99"):
        await PostgresStore(config).run(Bus())
