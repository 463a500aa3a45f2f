"""Build the clients that users of Drogue IoT have, each from its own published source, into build/tools/bin.

A line for each says what became of it. Exit code: 0 all are there; 1 one could not be built; 3 cargo, or what it
downloads from, is out of reach and nothing was built. Downloads come first, so that a network that fails is never taken
for a client that does not build. Built without optimisation: what goes over the wire is the same, and it takes half the
time. Uses nothing but Python's own library, so that CI runs it before anything is set up.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLS = HERE.parents[1] / "build" / "tools"
LIMIT_S = 450.0  # with the tests, below nine minutes
STARTED_S = time.monotonic()
# `#![feature]` of what has become stable, and of what has not, on a compiler of today.
UNSTABLE = {"RUSTC_BOOTSTRAP": "1"}


class Failed(Exception):
    """A download or a build did not work; says why in one line."""


def run(*command: str, cwd: Path = TOOLS, env: dict[str, str] | None = None) -> str:
    """Run a command at low priority within what is left of the time; return what it printed. Raises Failed."""
    left_s = LIMIT_S - (time.monotonic() - STARTED_S)
    try:
        done = subprocess.run(
            ["nice", *command], cwd=cwd, env={**os.environ, "CARGO_PROFILE_DEV_DEBUG": "0", **(env or {})},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=max(left_s, 1.0),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Failed(f"not done within {LIMIT_S:.0f} s") from None
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        lines = [line for line in text.splitlines() if line.strip()]
        (TOOLS / "failed.log").write_text(text)
        wrong = next((line for line in lines if line.startswith("error")), lines[-1] if lines else "no output")
        raise Failed(f"{wrong[:200]} (build/tools/failed.log)")
    return text


def registry_source(name: str, version: str) -> Path:
    """Return where cargo keeps the published source of a crate."""
    home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    found = sorted((home / "registry" / "src").glob(f"*/{name}-{version}"))
    if not found:
        raise Failed(f"cargo did not keep the source of {name} {version}")
    return found[-1]


def unpack(name: str, version: str) -> Path:
    """Copy a crate's published source to where it is built, and download what its own lock file names."""
    run("cargo", "info", "--quiet", f"{name}@{version}")
    source = TOOLS / "src" / name
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(registry_source(name, version), source)
    (source / "rust-toolchain.toml").unlink(missing_ok=True)
    run("cargo", "fetch", "--locked", cwd=source)
    return source


def fetch_drg() -> None:
    unpack("drg", "0.11.0")


def build_drg() -> None:
    source = TOOLS / "src" / "drg"
    run("cargo", "build", "--offline", "--locked", cwd=source)
    keep(source / "target" / "debug" / "drg")


def fetch_device() -> None:
    run("cargo", "fetch", "--locked", cwd=HERE / "embedded-update")


def build_device() -> None:
    target = TOOLS / "src" / "device-target"
    run("cargo", "build", "--offline", "--locked", "--target-dir", str(target), cwd=HERE / "embedded-update", env=UNSTABLE)
    keep(target / "debug" / "dfud-interop-device")


def fetch_drgdfu() -> None:
    unpack("drgdfu", "0.6.0")


def build_drgdfu() -> None:
    """As published, for a nightly compiler of 2022; on one of today two of its libraries need a word more or a module less.

    Without Bluetooth, TLS and udev, which need system libraries and of which nothing is used here.
    """
    source = TOOLS / "src" / "drgdfu"
    io, hal = source.with_name("embedded-io"), source.with_name("embedded-hal-async")
    for copy, version in ((io, "0.3.0"), (hal, "0.1.0-alpha.2")):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(registry_source(copy.name, version), copy)
    edit(hal / "src" / "lib.rs", r"^pub mod spi;$", "")
    edit(io / "src" / "asynch.rs", r"^    fn read_exact<", r"    #[define_opaque(ReadExactFuture)]\n\g<0>")
    edit(io / "src" / "asynch.rs", r"^    fn write_all<", r"    #[define_opaque(WriteAllFuture)]\n\g<0>")
    manifest = source / "Cargo.toml"
    edit(manifest, r"^\[dependencies\.(tokio-serial|reqwest)\]$", r"\g<0>\ndefault-features = false")
    patches = "".join(f'{copy.name} = {{ path = "../{copy.name}" }}\n' for copy in (io, hal))
    manifest.write_text(f"{manifest.read_text()}\n[patch.crates-io]\n{patches}")
    flags = "-Zcrate-attr=feature(impl_trait_in_assoc_type) --cap-lints allow"
    run("cargo", "build", "--offline", "--no-default-features", cwd=source, env={**UNSTABLE, "RUSTFLAGS": flags})
    keep(source / "target" / "debug" / "drgdfu")


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
    (TOOLS / "src").mkdir(parents=True, exist_ok=True)
    stamp, now = TOOLS / "recipe", recipe()
    if not stamp.exists() or stamp.read_text() != now:
        shutil.rmtree(TOOLS / "bin", ignore_errors=True)
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
    shutil.rmtree(TOOLS / "src", ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
