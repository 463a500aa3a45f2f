"""The publisher's way: a key, a signature, a publication that dfud checks, and what each of them refuses."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from devicefw.sim.firmware import build
from dfud.wire.manifest import FLAG_DOWNGRADE, decode_envelope_untrusted, key_id, verify
from tests.cli.test_dfuctl import Dfuctl, dfuctl

__all__ = ["dfuctl"]
IMAGE = build("print(1)\n", "1.0")


def _files(tmp_path: Path) -> tuple[str, str, str]:
    (tmp_path / "pass").write_text("correct horse\n")
    (tmp_path / "a.bin").write_bytes(IMAGE)
    return str(tmp_path / "key.pem"), str(tmp_path / "pass"), str(tmp_path / "a.bin")


async def test_a_key_is_encrypted_private_and_never_overwritten(tmp_path: Path) -> None:
    run, (key, secret, _) = Dfuctl(tmp_path), _files(tmp_path)
    public = await run("key", "new", key, "--passphrase-file", secret)
    assert Path(key).stat().st_mode & 0o777 == 0o600
    assert Path(key).read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert await run("key", "show", key, "--passphrase-file", secret) == public
    assert "exists already" in await run("key", "new", key, "--passphrase-file", secret, fails=True)
    (tmp_path / "other").write_text("another phrase")
    assert "a wrong passphrase" in await run("key", "show", key, "--passphrase-file", str(tmp_path / "other"), fails=True)
    (tmp_path / "short").write_text("short")
    told = await run("key", "new", str(tmp_path / "n.pem"), "--passphrase-file", str(tmp_path / "short"), fails=True)
    assert "too short" in told and not (tmp_path / "n.pem").exists()


async def test_a_manifest_carries_downgrade_floor_and_keys(tmp_path: Path) -> None:
    run, (key, secret, image) = Dfuctl(tmp_path), _files(tmp_path)
    found = json.loads(await run("-o", "json", "key", "new", key, "--passphrase-file", secret))
    public = base64.b64decode(found["public"])
    about = ("--key", key, "--passphrase-file", secret, "--version", "1.0", "--hardware", "esp32c3", "--sequence", "7")
    extra = ("--floor", "5", "--allow-downgrade", "--add-key", found["public"], "--revoke-key", found["public"])
    await run("--app", "a", "sign", image, *about, *extra)
    envelope, manifest = decode_envelope_untrusted(Path(image + ".manifest").read_bytes())
    assert verify(envelope, [public]) == public
    assert (manifest.app, manifest.sequence, manifest.floor, manifest.flags) == ("a", 7, 5, FLAG_DOWNGRADE)
    assert (manifest.add, manifest.revoke) == ((public,), (key_id(public),))
    assert "public key 'x'" in await run("--app", "a", "sign", image, *about, "--add-key", "x", fails=True)
    Path(image).write_bytes(b"no image")
    await run("--app", "a", "sign", image, *about, fails=True)


async def test_a_floor_above_the_firmwares_own_sequence_is_not_signed(tmp_path: Path) -> None:
    run, (key, secret, image) = Dfuctl(tmp_path), _files(tmp_path)
    await run("key", "new", key, "--passphrase-file", secret)
    about = ("--key", key, "--passphrase-file", secret, "--version", "1.0", "--hardware", "esp32c3", "--sequence", "7")
    told = await run("--app", "a", "sign", image, *about, "--floor", "8", fails=True)
    assert "manifest.floor: 8, expected at most the firmware's own sequence, 7" in told.replace("\n", " ")
    assert not Path(image + ".manifest").exists()
    await run("--app", "a", "sign", image, *about, "--floor", "7")


async def test_signed_firmware_is_published_and_a_strangers_is_refused(dfuctl: Dfuctl, tmp_path: Path) -> None:
    key, secret, image = _files(tmp_path)
    public = await dfuctl("key", "new", key, "--passphrase-file", secret)
    await dfuctl("key", "new", key + "2", "--passphrase-file", secret)
    await dfuctl("app", "create", "a", "--key", public)
    about = ("--passphrase-file", secret, "--version", "1.0", "--hardware", "esp32c3", "--sequence", "1")
    await dfuctl("--app", "a", "sign", image, "--key", key + "2", *about)
    publish = ("--app", "a", "firmware", "publish", image)
    told = await dfuctl(*publish, "--manifest", image + ".manifest", fails=True)
    assert "not signed by a trusted key" in told
    assert "signed firmware only" in await dfuctl(*publish, "--version", "1.0", "--hardware", "esp32c3", fails=True)
    await dfuctl("--app", "a", "sign", image, "--key", key, *about)
    assert "Published 1.0" in await dfuctl(*publish, "--manifest", image + ".manifest")
    assert json.loads(await dfuctl("-o", "json", "--app", "a", "firmware", "list"))[0]["signed"] is True
