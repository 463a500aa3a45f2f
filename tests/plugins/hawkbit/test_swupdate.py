"""Debian's swupdate as a neighbour: it lives in the same hawkBit, with an update of its own, and dfud leaves it alone."""

from __future__ import annotations

import hashlib
import subprocess
import uuid
from pathlib import Path

import trio

from tests.plugins.hawkbit.harness import harness_at, person_at, until, whole_way
from tests.plugins.hawkbit.server import Hawkbit
from tests.real_parts import require

NEW = b"new image " * 3000
PAYLOAD = b"for the neighbour " * 500


def cpio_crc(files: dict[str, bytes]) -> bytes:
    """Pack an archive as swupdate reads it. Source: cpio(5), "New CRC Format"."""
    out = bytearray()
    for number, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")], 1):
        last = name == "TRAILER!!!"
        fields = [0 if last else number, 0 if last else 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        fields[12] = 0 if last else sum(data) & 0xFFFFFFFF
        out += b"070702" + "".join(f"{field:08X}" for field in fields).encode() + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out + bytes(-len(out) % 512))


def signed_package(directory: Path, installed: Path) -> bytes:
    openssl = require("openssl")
    digest = hashlib.sha256(PAYLOAD).hexdigest()
    description = directory / "sw-description"
    description.write_text(
        'software = { version = "1.0"; hardware-compatibility = ["1.0"];\n'
        f'  files: ({{ filename = "payload"; path = "{installed}"; sha256 = "{digest}"; }}); }}\n'
    )
    certificate = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "k.pem", "-out", "c.pem"]
    usage = ["-addext", "extendedKeyUsage=emailProtection", "-addext", "keyUsage=digitalSignature"]
    subprocess.run([*certificate, "-subj", "/CN=swu", *usage], cwd=directory, check=True, capture_output=True)
    sign = [openssl, "cms", "-sign", "-in", "sw-description", "-out", "sig", "-signer", "c.pem", "-inkey", "k.pem"]
    subprocess.run([*sign, "-outform", "DER", "-nosmimecap", "-binary"], cwd=directory, check=True, capture_output=True)
    return cpio_crc(
        {
            "sw-description": description.read_bytes(),
            "sw-description.sig": (directory / "sig").read_bytes(),
            "payload": PAYLOAD,
        }
    )


async def test_swupdate_updates_itself_in_the_same_hawkbit(hawkbit: Hawkbit, tmp_path: Path) -> None:
    swupdate = require("swupdate")
    installed = tmp_path / "installed"
    package = await trio.to_thread.run_sync(signed_package, tmp_path, installed)
    neighbour = f"swupdate-{uuid.uuid4().hex[:8]}"
    async with harness_at(hawkbit, tmp_path / "dfud") as harness, person_at(hawkbit) as person:
        device = await harness.device()
        ours = await person.assign(await person.simple_set("2.0", NEW), harness.target())
        name = f"theirs-{uuid.uuid4().hex[:8]}"
        module = await person.module(name, "1.0", {"neighbour.swu": package}, metadata={})
        assert (await person.ddi("GET", neighbour)).status_code == 200
        theirs = await person.assign(await person.set(name, "1.0", module), neighbour)
        options = f"-t {hawkbit.tenant} -u {hawkbit.url} -i {neighbour} -g {hawkbit.gateway_token} -p 5"
        command = [swupdate, "-v", "-k", str(tmp_path / "c.pem"), "-M", "-m", "-H", "board:1.0", "-u", options]
        log = (tmp_path / "log").open("wb")
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin"},
        )
        try:

            async def there() -> bool:
                return installed.exists() and installed.read_bytes() == PAYLOAD

            await until("swupdate has installed its own", there, timeout_s=90)
            await whole_way(device)
            await until("ours is finished", lambda: person.finished(harness.target(), ours))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(tmp_path / 'log').read_text(errors='replace')[-3000:]}") from None
        finally:
            process.terminate()
            await trio.to_thread.run_sync(process.wait)
            log.close()
        assert (await person.action(neighbour, theirs))["status"] != "error"
        told = await person.statuses(neighbour, theirs)
        assert any("SWUPDATE" in line.upper() for status in told for line in status["messages"]), told
        assert not any("artifact *.bin" in line for status in told for line in status["messages"])
        assert await person.update_status(neighbour) == "pending", "nobody closed it but swupdate itself could"
        if hawkbit.model is not None:
            # swupdate asks for the size first, and goes on without: nothing of dfud's sends this, so nothing recorded it.
            asked = [
                text for text in hawkbit.model.unknown if not text.startswith(f"HEAD /{hawkbit.tenant}/controller/")
            ]
            hawkbit.model.unknown[:] = asked
