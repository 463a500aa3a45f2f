"""The process that makes one package.

`python -m dfud.package.worker IMAGE SHA256 BASE BASE_SHA256 KINDS PAYLOAD DIRECTORY KEY`

Writes <package id>.dfup of each candidate and <key>.key, which names them (made.py), into the directory, each synced under a
temporary name and renamed; the key last. An image that is not the one that its SHA-256 names is not packed: the process ends with
DAMAGED. A damaged base is done without.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

from dfud.errors import DfudError, PeerError
from dfud.model.quickest import Candidate
from dfud.package.build import build_packages
from dfud.package.file import PackageFile, read_package_untrusted, write_package
from dfud.package.made import write_made
from dfud.wire.messages import Kind

DAMAGED = 3


def main(arguments: list[str]) -> int:
    image, sha256, base, base_sha256, kinds, payload, directory, key = arguments
    os.nice(5)
    try:
        data = Path(image).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            print(
                f"the stored image is damaged: {len(data)} bytes with another SHA-256 than {sha256}; publish it again",
                file=sys.stderr,
            )
            return DAMAGED
        base_data = Path(base).read_bytes() if base else None
        allowed = int(kinds)
        if base_data is not None and hashlib.sha256(base_data).hexdigest() != base_sha256:
            print(f"the base {base_sha256} is damaged", file=sys.stderr)
            base_data, allowed = None, 1 << Kind.FULL
        found = build_packages(data, base_data, kinds=allowed, payload_bytes=int(payload), workers=os.cpu_count() or 1)
        if base_data is not None:
            # A package is named by its chunks: what has those of another, from another base or to another image, would stand for it.
            apart = [pair for pair in found if not _taken(Path(directory), pair[0])]
            found = apart or build_packages(data, None, kinds=1 << Kind.FULL, payload_bytes=int(payload))
        for package, _ in found:
            _write(Path(directory), f"{package.id.hex()}.dfup", write_package(package))
        made = [Candidate(p.id.hex(), int(p.kind), p.total_bytes, work) for p, work in found]
        _write(Path(directory), f"{key}.key", write_made(made))
    except (DfudError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _taken(directory: Path, package: PackageFile) -> bool:
    """Say whether the name of a package is that of another one that is kept."""
    try:
        kept = read_package_untrusted((directory / f"{package.id.hex()}.dfup").read_bytes())
    except (OSError, PeerError):
        return False
    return (kept.base_sha256, kept.sha256, kept.size) != (package.base_sha256, package.sha256, package.size)


def _write(directory: Path, name: str, data: bytes) -> None:
    fd, temporary = tempfile.mkstemp(prefix=".new-", dir=directory)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, directory / name)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
