"""The process that makes one package: `python -m dfud.package.worker IMAGE BASE KINDS PAYLOAD DIRECTORY KEY`.

Writes <package id>.dfup and <key>.key into the directory, each synced under a temporary name and renamed; the key last.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from dfud.errors import DfudError
from dfud.package.build import build_package
from dfud.package.file import write_package


def main(arguments: list[str]) -> int:
    image, base, kinds, payload, directory, key = arguments
    os.nice(5)
    try:
        package = build_package(
            Path(image).read_bytes(),
            Path(base).read_bytes() if base else None,
            kinds=int(kinds),
            payload_bytes=int(payload),
            workers=os.cpu_count() or 1,
        )
        name = package.id.hex()
        _write(Path(directory), f"{name}.dfup", write_package(package))
        _write(Path(directory), f"{key}.key", name.encode())
    except (DfudError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


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
