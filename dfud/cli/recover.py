"""`dfuctl recover`: talk to a bootloader that waits on a serial line. bootloader/FORMAT.md, "Recovery"."""

from __future__ import annotations

import hashlib
import io
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import serial  # type: ignore[import-untyped]  # it ships no annotations

from dfud.cli.client import CliError, Session
from dfud.cli.images import app_at as app_at_option
from dfud.cli.images import image_bytes
from dfud.cli.resources import pass_session
from dfud.cli.show import TRANSFER, progress_bar, say
from dfud.errors import PeerError
from dfud.model.espimage import check_application_untrusted, check_esp_image_untrusted, hardware_name
from dfud.package.build import build_package
from dfud.package.file import PackageFile
from dfud.wire.manifest import Manifest, decode_envelope_untrusted, encode_manifest
from dfud.wire.messages import Kind
from dfud.wire.subset import encode

BAUD = 115200
PAYLOAD_BYTES = 4112
ANSWER_S, AT_ONCE_S = 10, 2
TRIES = 3
INFO, DIAG, BEGIN, CHUNK, FINISH, BOOT = 1, 2, 3, 4, 5, 6
DIAG_RECORDS = 32
REASONS = {1: "no slot can be booted", 2: "the recovery pin is held"}
ERRORS = {
    1: "no image",
    2: "the flash failed",
    3: "the SHA-256 is wrong",
    4: "no key that the device trusts signed it",
    5: "its sequence number is too low",
    6: "its segment table is wrong",
    7: "it is made for another chip",
    8: "it is made for a larger flash",
    9: "a segment lies outside of the application's memory",
    10: "its manifest cannot be read, or is for another app or hardware",
    11: "a chunk is damaged or out of order",
    12: "a chunk does not decode",
    13: "it starts from another image than the one in the other slot",
    15: "it is too large",
    16: "a frame was damaged",
    17: "this was not its turn",
    18: "the bootloader does not know this kind of package",
}
FRAME_DAMAGED = 16
KINDS = 1 << Kind.FULL | 1 << Kind.DELTA | 1 << Kind.MAPPED


class Slot(msgspec.Struct, frozen=True):
    """error: 0, or why it is not booted; sha256: as found, all 0 if it was not computed."""

    error: int
    sequence: int
    sha256: str
    version: str


class State(msgspec.Struct, frozen=True):
    """What the bootloader says of itself; `current` is None if it cannot read its state."""

    reason: str
    current: int | None
    keys: str
    flash_bytes: int
    image_max_bytes: int
    chunk_max_bytes: int
    slots: tuple[Slot, Slot]


class Line:
    """One serial line with a waiting bootloader at its other end."""

    def __init__(self, port: Any) -> None:
        self._port = port

    def waits(self) -> bool:
        """Whether there is a waiting bootloader: it answers at once."""
        try:
            self.request(INFO, tries=1, answer_s=AT_ONCE_S)
        except CliError:
            return False
        return True

    def request(self, operation: int, payload: bytes = b"", *, tries: int = TRIES, answer_s: float = ANSWER_S) -> bytes:
        """Return the answer's payload. Raises PeerError with the bootloader's reason, CliError if it does not answer."""
        message = bytes([operation]) + payload
        frame = escape(message + struct.pack("<I", zlib.crc32(message)))
        for _ in range(tries):
            self._port.reset_input_buffer()
            self._port.write(frame)
            answer = self._answer(operation, answer_s)
            if answer is not None and answer[1] != FRAME_DAMAGED:
                if answer[1]:
                    raise PeerError(f"the bootloader refuses: {ERRORS.get(answer[1], f'error {answer[1]}')}")
                return answer[2:]
        raise CliError("the bootloader does not answer; is it waiting for recovery, and is this its line?")

    def _answer(self, operation: int, answer_s: float) -> bytes | None:
        """Return the next right frame that answers, or None after a while. Text of the console between frames is skipped."""
        deadline = time.monotonic() + answer_s
        collected = bytearray()
        while time.monotonic() < deadline:
            byte = self._port.read(1)
            if byte != b"\xc0":
                collected += byte
                continue
            frame = unescape(bytes(collected))
            collected.clear()
            if len(frame) >= 6 and zlib.crc32(frame[:-4]) == int.from_bytes(frame[-4:], "little"):
                if frame[0] in (operation | 0x80, 0x80):
                    return frame[:-4]
        return None

    def state(self) -> State:
        data = self.request(INFO)
        if len(data) < 48 or data[0] != 1:
            raise PeerError("the bootloader speaks another version of the recovery protocol")
        flash, image, chunk = struct.unpack_from("<III", data, 4)
        slots = []
        for at in (48, 48 + 101):
            error, sequence, digest, version = struct.unpack_from("<BI32s64s", data, at)
            slots.append(Slot(error, sequence, digest.hex(), version.rstrip(b"\0").decode("utf-8", "replace")))
        keys = (
            "none: any image is taken"
            if data[3] & 1
            else "unreadable: nothing is trusted"
            if data[3] & 2
            else "signed images"
        )
        return State(
            reason=REASONS.get(data[1], "unknown"),
            current=data[2] if data[2] < 2 else None,
            keys=keys,
            flash_bytes=flash,
            image_max_bytes=image,
            chunk_max_bytes=chunk,
            slots=(slots[0], slots[1]),
        )

    def diagnostics(self) -> list[bytes]:
        """Return the records that are whole, oldest first."""
        records = [self.request(DIAG, bytes([i])) for i in range(DIAG_RECORDS)]
        whole = [r for r in records if r[:4] == b"DFUD" and zlib.crc32(r[:-4]) == int.from_bytes(r[-4:], "little")]
        return sorted(whole, key=lambda r: int.from_bytes(r[4:8], "little"))

    def install(self, slot: int, package: PackageFile, envelope: bytes, done: Callable[[int], object]) -> None:
        """Send the package into the slot; `done` is told how many bytes have gone.

        After an error the slot holds no image that boots, the other is untouched.
        """
        self.request(BEGIN, bytes([slot, package.kind]) + (package.base_sha256 or b"\xff" * 32) + envelope)
        sent = 0
        for chunk in package.chunks:
            self.request(CHUNK, chunk)
            sent += len(chunk)
            done(sent)
        self.request(FINISH)

    def boot(self) -> None:
        """Leave recovery. The line may go with the answer: a USB port vanishes while its chip resets."""
        try:
            self.request(BOOT, tries=1)
        except serial.SerialException:
            return


def escape(data: bytes) -> bytes:
    """Return the frame of RFC 1055 around `data`."""
    return b"\xc0" + data.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0"


def unescape(data: bytes) -> bytes:
    return data.replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb")


def _envelope(session: Session, data: bytes, manifest: Path | None, version: str | None, hardware: str) -> bytes:
    if manifest is not None:
        envelope = manifest.read_bytes()
        described = decode_envelope_untrusted(envelope)[1]
        if described.sha256 != hashlib.sha256(data).digest():
            raise CliError(f"{manifest} describes another image")
        return envelope
    if version is None:
        raise CliError("give --manifest (of a signed image), or --version for a device that takes unsigned ones")
    described = Manifest(session.app, version, hardware, 0, len(data), hashlib.sha256(data).digest())
    return encode([encode_manifest(described), b"", b""])


def show_state(session: Session, state: State) -> None:
    if session.json:
        session.show(msgspec.to_builtins(state))
        return
    say(f"Waiting because: {state.reason}. Keys: {state.keys}. Flash: {state.flash_bytes >> 20} MB.")
    for number, slot in enumerate(state.slots):
        mark = "*" if number == state.current else " "
        what = f"{slot.version or 'an image without a manifest'}, sequence {slot.sequence}"
        say(f"{mark} slot {number}: {ERRORS.get(slot.error, slot.error) if slot.error else what}")


@contextmanager
def opened(port: str) -> Iterator[Line]:
    """Yield the line to a waiting bootloader; what goes wrong with the port becomes a CliError."""
    try:
        found = serial.Serial(port, BAUD, timeout=0.1)
    except (OSError, serial.SerialException) as error:
        from dfud.board.flashing import no_port

        raise CliError(no_port(port, error)) from None
    with found:
        try:
            yield Line(found)
        except serial.SerialException as error:
            raise CliError(f"{port}: {error}") from None


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("image", type=_FILE, required=False)
@click.option("--port", required=True, help="Serial line of the device, such as /dev/ttyACM0.")
@click.option("--manifest", type=_FILE, help="Signed manifest of IMAGE, as `dfuctl sign` writes it.")
@click.option("--version", help="Version of IMAGE, for a device that takes unsigned ones.")
@click.option("--hardware", default="esp32c3", show_default=True, help="What an unsigned IMAGE is made for.")
@click.option("--raw", is_flag=True, help="IMAGE has no application description, and is no bootloader either.")
@app_at_option
@click.option("--base", type=_FILE, help="The image in the other slot: send only what differs from it.")
@click.option("--slot", type=click.IntRange(0, 1), help="Slot to write; the one that is not current if not given.")
@click.option("--diagnostics", type=click.Path(path_type=Path), help="File to write the diagnostics records to.")
@click.option("--boot/--no-boot", default=True, help="Leave recovery at the end, if something was written.")
@pass_session
def recover(
    session: Session,
    image: Path | None,
    port: str,
    manifest: Path | None,
    version: str | None,
    hardware: str,
    raw: bool,
    app_at: int | None,
    base: Path | None,
    slot: int | None,
    diagnostics: Path | None,
    boot: bool,
) -> None:
    """Bring a device back whose bootloader waits for recovery: no slot boots, or its recovery pin is held.

    Without IMAGE it shows what the bootloader knows. The new image is booted on trial, like any update.

    \b
    dfuctl recover --port /dev/ttyACM0
    dfuctl recover --port /dev/ttyACM0 lamp.bin --manifest lamp.bin.manifest
    """
    data = image_bytes(image, app_at) if image else b""
    envelope = b""
    package = None
    if image:
        hardware = hardware_name(hardware)
        (check_esp_image_untrusted if raw else check_application_untrusted)(io.BytesIO(data), len(data), hardware)
        envelope = _envelope(session, data, manifest, version, hardware)
        package = build_package(data, base.read_bytes() if base else None, kinds=KINDS, payload_bytes=PAYLOAD_BYTES)
    with opened(port) as line:
        state = line.state()
        show_state(session, state)
        if diagnostics is not None:
            records = line.diagnostics()
            diagnostics.write_bytes(b"".join(records))
            say(f"{len(records)} diagnostics records: {diagnostics}", err=session.json)
        if package is not None:
            if len(data) > state.image_max_bytes:
                raise CliError(f"the image has {len(data)} bytes, a slot holds {state.image_max_bytes}")
            target = slot if slot is not None else 1 - state.current if state.current is not None else 0
            total = package.total_bytes
            with progress_bar(f"slot {target}", TRANSFER, total=total) as progress:
                line.install(target, package, envelope, lambda sent: progress(sent, total))
            if boot:
                line.boot()
                say("Installed; the device boots it on trial.", err=session.json)
