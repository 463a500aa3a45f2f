"""Publisher's keys in a token: a real SoftHSM, made for the test, through its own library."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from devicefw.sim.firmware import build
from dfud.cli.client import CliError
from dfud.cli.pkcs11 import Place, parse_uri
from dfud.wire.manifest import decode_envelope_untrusted, verify
from tests.cli.test_dfuctl import Dfuctl, dfuctl
from tests.real_parts import require

__all__ = ["dfuctl"]
IMAGE = build("print(1)\n", "1.0")
PIN = "493027"
LIBRARY = next(
    (p for p in map(Path, ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")) if p.exists()), Path("missing")
)
URI = f"pkcs11:token=dfud;object=publisher?module-path={LIBRARY}"


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SoftHSM with one token; returns the file with its PIN."""
    tool = require("softhsm2")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    command = [tool, "--init-token", "--free", "--label", "dfud", "--pin", PIN, "--so-pin", "88888888"]
    subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "pin").write_text(PIN + "\n")
    (tmp_path / "a.bin").write_bytes(IMAGE)
    return tmp_path / "pin"


async def test_a_key_in_a_token_signs_firmware_that_dfud_takes(dfuctl: Dfuctl, token: Path, tmp_path: Path) -> None:
    image = str(tmp_path / "a.bin")
    public = await dfuctl("key", "new", URI, "--passphrase-file", str(token))
    assert await dfuctl("key", "show", URI, "--passphrase-file", str(token)) == public
    about = ("--passphrase-file", str(token), "--version", "1.0", "--hardware", "esp32c3", "--sequence", "1")
    await dfuctl("--app", "a", "sign", image, "--key", URI, *about)
    envelope, manifest = decode_envelope_untrusted(Path(image + ".manifest").read_bytes())
    assert verify(envelope, [base64.b64decode(public)]) == base64.b64decode(public)
    assert manifest.version == "1.0"
    await dfuctl("app", "create", "a", "--key", public)
    assert "Published 1.0" in await dfuctl("--app", "a", "firmware", "publish", image, "--manifest", image + ".manifest")


async def test_the_private_part_does_not_leave_the_token(token: Path, tmp_path: Path) -> None:
    await Dfuctl(tmp_path)("key", "new", URI, "--passphrase-file", str(token))
    import pkcs11

    library = pkcs11.lib(str(LIBRARY))
    library.reinitialize()  # this process loaded it before the token was made
    with library.get_token(token_label="dfud").open(user_pin=PIN) as session:
        (key,) = session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY})
        assert key[pkcs11.Attribute.SENSITIVE] and not key[pkcs11.Attribute.EXTRACTABLE]
        with pytest.raises(pkcs11.PKCS11Error):
            key[pkcs11.Attribute.VALUE]


async def test_what_is_wrong_is_one_sentence_without_the_pin(token: Path, tmp_path: Path) -> None:
    run = Dfuctl(tmp_path)
    pin = ("--passphrase-file", str(token))
    await run("key", "new", URI, *pin)
    assert "has a key 'publisher' already" in await run("key", "new", URI, *pin, fails=True)
    (tmp_path / "wrong").write_text("000000")
    told = await run("key", "show", URI, "--passphrase-file", str(tmp_path / "wrong"), fails=True)
    assert "the PIN is wrong" in told and "000000" not in told
    for uri, message in (
        (URI.replace("token=dfud", "token=other"), "knows no token 'other'"),
        (URI.replace("publisher", "nobody"), "has 0 private and 0 public Ed25519 keys 'nobody'"),
        (URI.replace("libsofthsm2.so", "nothing.so"), "is no PKCS#11 library"),
        ("pkcs11:token=x", "expected pkcs11:token=LABEL"),
    ):
        assert message in await run("key", "show", uri, *pin, fails=True)


def test_uris_are_read_and_pins_in_them_refused() -> None:
    assert parse_uri("pkcs11:object=a%20b;token=t%3B?module-path=/x/y.so") == Place("/x/y.so", "t;", "a b")
    for wrong in ("pkcs11:token=t;object=o?module-path=/x&pin-value=1234", "pkcs11:token=t;object=o?pin-source=/p"):
        with pytest.raises(CliError, match="does not belong into the key's URI") as told:
            parse_uri(wrong)
        assert "1234" not in str(told.value)
    with pytest.raises(CliError, match="'serial' is not understood"):
        parse_uri("pkcs11:token=t;object=o;serial=1?module-path=/x")
