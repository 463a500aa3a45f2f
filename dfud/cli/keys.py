"""key and sign: the publisher's part, done without dfud. The private key never leaves its file or its token."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from dfud.cli import pkcs11
from dfud.cli.client import CliError, Session
from dfud.cli.images import app_at as app_at_option
from dfud.cli.images import image_bytes, kind_of, kind_option, with_option
from dfud.cli.resources import pass_session
from dfud.model.espimage import check_application_untrusted, hardware_name
from dfud.model.names import check_name
from dfud.wire.manifest import FLAG_APP, FLAG_DOWNGRADE, FLAG_RAW, Manifest, floor_too_high, key_id, sign_with

PASSPHRASE_MIN = 8
_SEQUENCE = click.IntRange(0, (1 << 32) - 1)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
passphrase_file = click.option(
    "--passphrase-file",
    type=_FILE,
    help="File whose first line is the passphrase (of a token: its PIN); asked for if it is not given.",
)


def _passphrase(file: Path | None, *, confirm: bool, what: str = "Passphrase") -> bytes:
    if file is not None:
        text = file.read_text("utf-8").partition("\n")[0]
    else:
        text = str(click.prompt(what, hide_input=True, confirmation_prompt=confirm, err=True))
    return text.encode()


def _load(path: Path, file: Path | None) -> Ed25519PrivateKey:
    """Read a private key. Raises CliError that does not tell what the file holds."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from None
    try:
        found = load_pem_private_key(data, _passphrase(file, confirm=False))
    except TypeError:
        raise CliError(f"{path} is not encrypted; make a key with `dfuctl key new`") from None
    except ValueError:
        raise CliError(f"{path} cannot be read: a wrong passphrase, or no PEM file of a private key") from None
    if not isinstance(found, Ed25519PrivateKey):
        raise CliError(f"{path} holds another kind of key, expected Ed25519")
    return found


@contextmanager
def _signer(key: str, file: Path | None) -> Iterator[tuple[bytes, Callable[[bytes], bytes]]]:
    """Yield the public part of a key, in a file or a token, and what signs with it. Raises CliError."""
    if key.startswith(pkcs11.SCHEME):
        place = pkcs11.parse_uri(key)
        with pkcs11.opened(place, _passphrase(file, confirm=False, what="PIN").decode()) as held:
            yield held.public, held.sign
        return
    private = _load(Path(key), file)
    yield private.public_key().public_bytes_raw(), private.sign


def signed_app(
    app: str, data: bytes, version: str, hardware: str, sequence: int, key: str, passphrase_file: Path | None
) -> bytes:
    """Return the signed manifest of an app image. Raises CliError."""
    digest = hashlib.sha256(data).digest()
    manifest = Manifest(app, version, hardware, sequence, len(data), digest, flags=FLAG_APP)
    with _signer(key, passphrase_file) as (public, signer):
        return sign_with(manifest, public, signer)


def _public_key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise CliError(f"public key {text[:60]!r}: expected the base64 of 32 bytes, as `dfuctl key show` prints it")
    return key


def _tell(session: Session, public: bytes) -> None:
    text = base64.b64encode(public).decode()
    if session.json:
        session.show({"public": text, "id": key_id(public).hex()})
    else:
        session.say(text)


@click.group()
def key() -> None:
    """Keys that sign firmware. dfud never sees the private part."""


@key.command("new")
@click.argument("where", metavar="FILE")
@passphrase_file
@pass_session
def key_new(session: Session, where: str, passphrase_file: Path | None) -> None:
    """Make an Ed25519 key, write it encrypted to FILE, and print its public part for the app's spec.signing.keys.

    FILE may be the PKCS#11 URI of a key to be made in a token: 'pkcs11:token=LABEL;object=NAME?module-path=/path/of/library.so'.
    """
    if where.startswith(pkcs11.SCHEME):
        place = pkcs11.parse_uri(where)
        _tell(session, pkcs11.make(place, _passphrase(passphrase_file, confirm=False, what="PIN").decode()))
        return
    file = Path(where)
    secret = _passphrase(passphrase_file, confirm=True)
    if len(secret) < PASSPHRASE_MIN:
        raise CliError(f"the passphrase is too short: expected at least {PASSPHRASE_MIN} bytes")
    made = Ed25519PrivateKey.generate()
    pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(secret))
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise CliError(f"{file} exists already; a key is never written over another") from None
    except OSError as error:
        raise CliError(f"{file} cannot be written: {error.strerror}") from None
    with os.fdopen(fd, "wb") as out:
        out.write(pem)
        out.flush()
        os.fsync(out.fileno())
    _tell(session, made.public_key().public_bytes_raw())


@key.command("show")
@click.argument("where", metavar="FILE")
@passphrase_file
@pass_session
def key_show(session: Session, where: str, passphrase_file: Path | None) -> None:
    """Print the public part of the key in FILE, or of a PKCS#11 URI."""
    with _signer(where, passphrase_file) as (public, _):
        _tell(session, public)


@click.command("sign")
@click.argument("image", type=_FILE)
@click.option("--key", "key_file", required=True, help="File that `dfuctl key new` wrote, or PKCS#11 URI.")
@passphrase_file
@click.option("--app", "app_name", help="App that it is for; as `dfuctl --app`. No login is needed.")
@click.option("--version", required=True, help="Version of the firmware.")
@click.option("--hardware", required=True, help="What it is made for, such as esp32c3.")
@click.option("--sequence", type=_SEQUENCE, required=True, help="Orders the versions; a lower one is a downgrade.")
@click.option(
    "--floor",
    type=_SEQUENCE,
    default=0,
    help="From now on nothing below this sequence is taken; at most the firmware's own.",
)
@click.option("--allow-downgrade", is_flag=True, help="Say in the manifest that a device may go back to this one.")
@click.option("--raw", is_flag=True, help="Any file, not an ESP image.")
@kind_option
@with_option
@app_at_option
@click.option(
    "--add-key", "add", multiple=True, help="Public key that devices trust, too, once this firmware is confirmed."
)
@click.option(
    "--revoke-key",
    "revoke",
    multiple=True,
    help="Public key that devices never trust again, once this firmware is confirmed.",
)
@click.option("-O", "--to", type=click.Path(path_type=Path), help="Manifest to write; IMAGE.manifest if not given.")
@pass_session
def sign(
    session: Session,
    image: Path,
    key_file: str,
    passphrase_file: Path | None,
    app_name: str | None,
    version: str,
    hardware: str,
    sequence: int,
    floor: int,
    allow_downgrade: bool,
    raw: bool,
    kind: str | None,
    beside: tuple[int, int] | None,
    app_at: int | None,
    add: tuple[str, ...],
    revoke: tuple[str, ...],
    to: Path | None,
) -> None:
    """Write the signed manifest of IMAGE, for `dfuctl firmware publish --manifest`. Asks dfud nothing."""
    app = check_name("app", app_name or session.app)
    check_name("version", version)
    hardware = check_name("hardware", hardware_name(hardware))
    if floor > sequence:
        raise CliError(floor_too_high(floor, sequence))
    as_it_is, image_kind = kind_of(kind, raw=raw)
    data = image_bytes(image, app_at, raw=as_it_is)
    if not as_it_is:
        check_application_untrusted(io.BytesIO(data), len(data), hardware)
    manifest = Manifest(
        app=app,
        version=version,
        hardware=hardware,
        sequence=sequence,
        size=len(data),
        sha256=hashlib.sha256(data).digest(),
        flags=FLAG_DOWNGRADE * allow_downgrade | {"raw": FLAG_RAW, "app": FLAG_APP}.get(image_kind, 0),
        floor=floor,
        add=tuple(_public_key(text) for text in add),
        revoke=tuple(key_id(_public_key(text)) for text in revoke),
        beside=beside,
    )
    with _signer(key_file, passphrase_file) as (public, signer):
        envelope = sign_with(manifest, public, signer)
    target = to or image.with_name(image.name + ".manifest")
    target.write_bytes(envelope)
    if session.json:
        session.show({"manifest": str(target), "key": key_id(public).hex(), "sha256": manifest.sha256.hex()})
    else:
        session.say(f"Signed {version} for {hardware}, sequence {sequence}: {target}")
