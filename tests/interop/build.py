"""Build the clients that users of Drogue IoT have, each from its own published source, into build/tools/bin.

A line for each says what became of it. Exit code: 0 all are there; 1 one could not be built; 3 cargo, or what it
downloads from, is out of reach and nothing was built. Downloads come first, so that a network that fails is never taken
for a client that does not build. Built without optimisation: what goes over the wire is the same, and it takes half the
time. It may take any time while it gets on, and fails when nothing moves; a run that was cut off, in whatever way, is
continued by the next one. Uses nothing but Python's own library, so that CI runs it before anything is set up.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLS = HERE.parents[1] / "build" / "tools"
SOURCES = TOOLS / "src"
TARGETS = TOOLS / "target"  # what cargo has built so far, by client; kept until all of them are there
STILL_S = 300.0  # a command that prints nothing and makes no file for so long is ended
LOOK_S = 0.2
# `#![feature]` of what has become stable, and of what has not, on a compiler of today.
UNSTABLE = {"RUSTC_BOOTSTRAP": "1"}


class Failed(Exception):
    """A download or a build did not work; says why in one line."""


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None, still_s: float = STILL_S) -> str:
    """Run a command at low priority for as long as it gets on; return what it printed. Raises Failed."""
    log = TOOLS / "running.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["nice", *command], cwd=cwd or TOOLS, env={**os.environ, "CARGO_PROFILE_DEV_DEBUG": "0", **(env or {})},
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        before, moved_s = progress(log), time.monotonic()
        while process.poll() is None:
            time.sleep(LOOK_S)
            if (now := progress(log)) != before:
                before, moved_s = now, time.monotonic()
            elif time.monotonic() - moved_s > still_s:
                raise Failed(f"{' '.join(command[:2])}: nothing moved for {still_s:.0f} s; the next run goes on from here")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its own session: cargo and the compilers that it started
            process.wait()
    text = log.read_bytes().decode("utf-8", "replace")
    if process.returncode:
        lines = [line for line in text.splitlines() if line.strip()]
        (TOOLS / "failed.log").write_text(text)
        wrong = next((line for line in lines if line.startswith("error")), lines[-1] if lines else "no output")
        raise Failed(f"{wrong[:200]} (build/tools/failed.log)")
    return text


def progress(log: Path) -> tuple[int, int]:
    """Return what grows while cargo gets on: what it printed, and what it and its compilers have written."""
    files = sum(len(names) for _, _, names in os.walk(TARGETS))
    return log.stat().st_size, files


def registry_source(name: str, version: str) -> Path:
    """Return where cargo keeps the published source of a crate."""
    home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    found = sorted((home / "registry" / "src").glob(f"*/{name}-{version}"))
    if not found:
        raise Failed(f"cargo did not keep the source of {name} {version}")
    return found[-1]


def unpack(name: str, version: str) -> Path:
    """Copy a crate's published source to where it is built, and download what its own lock file names.

    A copy that is whole is left as it is: a new one would look changed to cargo, and be built from the beginning.
    """
    source, whole = SOURCES / name, SOURCES / f"{name}.whole"
    if not whole.exists():
        run("cargo", "info", "--quiet", f"{name}@{version}")
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(registry_source(name, version), source)
        (source / "rust-toolchain.toml").unlink(missing_ok=True)
        whole.touch()
    run("cargo", "fetch", "--locked", cwd=source)
    return source


def target(client: str) -> tuple[str, str]:
    return "--target-dir", str(TARGETS / client)


def fetch_drg() -> None:
    unpack("drg", "0.11.0")


def build_drg() -> None:
    run("cargo", "build", "--offline", "--locked", *target("drg"), cwd=SOURCES / "drg")
    keep(TARGETS / "drg" / "debug" / "drg")


def fetch_device() -> None:
    run("cargo", "fetch", "--locked", cwd=HERE / "embedded-update")


def build_device() -> None:
    run("cargo", "build", "--offline", "--locked", *target("device"), cwd=HERE / "embedded-update", env=UNSTABLE)
    keep(TARGETS / "device" / "debug" / "dfud-interop-device")


def fetch_drgdfu() -> None:
    unpack("drgdfu", "0.6.0")


def build_drgdfu() -> None:
    """As published, for a nightly compiler of 2022; on one of today two of its libraries need a word more or a module less.

    Without Bluetooth, TLS and udev, which need system libraries and of which nothing is used here.
    """
    source = SOURCES / "drgdfu"
    if not (SOURCES / "drgdfu.edited").exists():
        edit_drgdfu(source)
    flags = "-Zcrate-attr=feature(impl_trait_in_assoc_type) --cap-lints allow"
    env = {**UNSTABLE, "RUSTFLAGS": flags}
    run("cargo", "build", "--offline", "--no-default-features", *target("drgdfu"), cwd=source, env=env)
    keep(TARGETS / "drgdfu" / "debug" / "drgdfu")


def edit_drgdfu(source: Path) -> None:
    """Make the changes, each once; a copy that was cut off in between is made anew."""
    io, hal = source.with_name("embedded-io"), source.with_name("embedded-hal-async")
    manifest, published = source / "Cargo.toml", source / "Cargo.toml.published"
    if not published.exists():
        shutil.copy2(manifest, published)
    shutil.copy2(published, manifest)
    for copy, version in ((io, "0.3.0"), (hal, "0.1.0-alpha.2")):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(registry_source(copy.name, version), copy)
    edit(hal / "src" / "lib.rs", r"^pub mod spi;$", "")
    edit(io / "src" / "asynch.rs", r"^    fn read_exact<", r"    #[define_opaque(ReadExactFuture)]\n\g<0>")
    edit(io / "src" / "asynch.rs", r"^    fn write_all<", r"    #[define_opaque(WriteAllFuture)]\n\g<0>")
    edit(manifest, r"^\[dependencies\.(tokio-serial|reqwest)\]$", r"\g<0>\ndefault-features = false")
    patches = "".join(f'{copy.name} = {{ path = "../{copy.name}" }}\n' for copy in (io, hal))
    manifest.write_text(f"{manifest.read_text()}\n[patch.crates-io]\n{patches}")
    (SOURCES / "drgdfu.edited").touch()


def edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
    if not count:
        raise Failed(f"{path.name} is not what was expected: no {pattern}")
    path.write_text(text)


def keep(binary: Path) -> None:
    """Put a binary where the tests look for it."""
    (TOOLS / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy2(binary, TOOLS / "bin" / binary.name)


CLIENTS: tuple[tuple[str, str, Callable[[], None], Callable[[], None]], ...] = (
    ("drg", "drg 0.11.0", fetch_drg, build_drg),
    ("dfud-interop-device", "embedded-update 0.12.0", fetch_device, build_device),
    ("drgdfu", "drgdfu 0.6.0", fetch_drgdfu, build_drgdfu),
)


def recipe() -> str:
    """Name what a built binary was built from."""
    device = HERE / "embedded-update"
    texts = (Path(__file__), device / "Cargo.toml", device / "Cargo.lock", device / "src" / "main.rs")
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in texts)).hexdigest()


def main() -> int:
    for directory in (SOURCES, TARGETS):
        directory.mkdir(parents=True, exist_ok=True)
    stamp, now = TOOLS / "recipe", recipe()
    if not stamp.exists() or stamp.read_text() != now:
        for directory in (TOOLS / "bin", SOURCES):
            shutil.rmtree(directory, ignore_errors=True)
        SOURCES.mkdir()
        stamp.write_text(now)
    wanted = [client for client in CLIENTS if not (TOOLS / "bin" / client[0]).exists()]
    for client in CLIENTS:
        if client not in wanted:
            print(f"interop: {client[1]}: built before", flush=True)
    if wanted and shutil.which("cargo") is None:
        print("interop: not run: there is no cargo here")
        return 3
    for _, title, fetch, _ in wanted:
        try:
            fetch()
        except Failed as error:
            print(f"interop: not run: {title} cannot be downloaded: {error}")
            return 3
    code = 0
    for _, title, _, build in wanted:
        began_s = time.monotonic()
        try:
            build()
            print(f"interop: {title}: built in {time.monotonic() - began_s:.0f} s", flush=True)
        except Failed as error:
            print(f"interop: {title}: not built: {error}", flush=True)
            code = 1
    if not code:
        for directory in (SOURCES, TARGETS):
            shutil.rmtree(directory, ignore_errors=True)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing of it goes on
    sys.exit(main())
