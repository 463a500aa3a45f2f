"""How what a dfud on PostgreSQL does costs more where there are more devices: 10^4, 10^5, 10^6 of them, one process.

make bench-cluster-growth [SIZES="10000 100000 1000000" POLL=1000000]. Devices come into the tables by COPY: what it costs to register
them is not asked here.
POLL: how many of them poll at most; what a process remembers of a device is measured with those. It needs 4 GB of disk for 10^6.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
from dfud_postgres.registering import wants

from bench.cluster import _open_to_all, server_cpu_s
from bench.cluster_devices import Process, Several
from bench.fleet_load import APP, NEW, OLD, device, status
from bench.http import cpu_s, rss_bytes
from dfud.api import PutDevice
from dfud.api.encoding import encode_all
from tests.plugins.postgres.server import Server, config_for, running

SAMPLE = 20_000
QUIET = 0.05  # of a core: what a process does by itself is done
QUIET_S = 900.0


def copy(server: Server, database: str, devices: int, key: bytes) -> float:
    """Put devices of one app into the tables of a store, which must have the app; return how many bytes the database has then."""
    with server.admin(database) as connection, connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")  # they refer to each other as they should
        with cursor.copy("COPY device (app, name, version, wants, body) FROM STDIN") as out:
            for n in range(devices):
                made = device(n, key)
                ((_, bodies),) = encode_all([PutDevice(made)])
                out.write_row((APP, made.name, made.metadata.resource_version, wants(made.spec.get("firmware")), bodies[0]))
        cursor.execute("INSERT INTO actual (app, device) SELECT app, name FROM device ORDER BY app, name")
        cursor.execute(
            "INSERT INTO device_label (app, key, value, device) "
            "SELECT app, 'group', 'g' || right(name, 1), name FROM device ORDER BY 2, 3"
        )
        # Not of what is empty: a plan made for that would be kept until the server looks again, a minute later.
        cursor.execute("VACUUM ANALYZE device, actual, device_label")
        found = cursor.execute("SELECT pg_database_size(current_database())").fetchone()
        assert found is not None
        return float(str(found[0]))


def settle(process: Process) -> None:
    """Return when a process that was started has done what it does by itself."""
    end = time.perf_counter() + QUIET_S
    while time.perf_counter() < end:
        before = cpu_s(process.pid)
        time.sleep(3.0)
        if cpu_s(process.pid) - before < QUIET * 3.0:
            return
    raise SystemExit(f"dfud is still busy with itself after {QUIET_S:.0f} s")


def measure(directory: Path, server: Server, devices: int, poll: int) -> None:
    directory.mkdir()
    config = config_for(directory, str(server.directory))
    section = f'[store.postgres]\nhost = "{config.host}"\ndatabase = "{config.database}"\nblobs_path = "{directory}/blobs"'
    process = Process(directory / "dfud1", directory, section)
    several = Several(directory, [process], directory / "credential.key", partial(server_cpu_s, server))
    several.start()
    try:
        several.ask("POST", "/api/registry/v1alpha1/apps", {"metadata": {"name": APP}, "spec": {"signing": {"mode": "optional"}}})
        for version, image in (("1.0", OLD), ("1.1", NEW)):
            several.ask("POST", f"/api/dfu/v1/apps/{APP}/firmware?version={version}&hardware=esp32c3&kind=raw", image)
        several.stop()
        disk = copy(server, config.database, devices, (directory / "credential.key").read_bytes())
        start = process.start()
        print(f"\n{devices} devices, {disk / 1e6:.0f} MB in the database; started in {start['cpu_s']:.1f} s of CPU", flush=True)
        settle(process)
        before, polled = rss_bytes(process.pid), min(devices, poll)
        sample = min(polled, SAMPLE)
        told("first poll of a device at a process", several.polls(polled, refused_max=polled // 500))
        several.polls(sample)
        told("poll that is known", several.polls(sample, 60_000))
        used = rss_bytes(process.pid)
        print(f"  {used / 1e6:.0f} MB once {polled} have polled, {(used - before) / polled:.0f} bytes for each", flush=True)
        told("report stored", several.polls(sample, SAMPLE, status(attributes={"n": "########"})))
        several.polls(sample)  # they say again what they said
        told("group update, each device", several.group(devices))
        told("told by its next poll", several.polls(sample))
    finally:
        several.stop()


def told(title: str, one: dict[str, float]) -> dict[str, float]:
    print(
        f"  {title:36} {one['us']:5.0f} us of CPU in dfud, {one['server_us']:4.0f} in PostgreSQL; {one['rate']:6.0f}/s",
        flush=True,
    )
    return one


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--poll", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, help="where there is room")
    given = parser.parse_args()
    load = psutil.getloadavg()[0]
    print(f"{psutil.cpu_count()} cores, load {load:.1f} when it began; PostgreSQL with fsync on this machine", flush=True)
    settings = "fsync = on\nfull_page_writes = on\nautovacuum = on\nshared_buffers = 1GB\nmax_wal_size = 4GB"
    with tempfile.TemporaryDirectory(prefix="dfud-bench-", dir=given.directory) as name:
        directory = Path(name)
        with running(settings, _open_to_all(directory)) as server:
            for devices in given.sizes:
                measure(directory / str(devices), server, devices, given.poll)


if __name__ == "__main__":
    main()
