"""Write a board's flash over its serial line, by esptool as a library.

Whatever esptool, its port or an answer does wrong becomes a PeerError that says what to do. It prints nothing; progress goes to a
callback. Source: esptool's "Embedding Esptool" and "Serial Protocol". May not ask anybody anything: that is the caller's.
"""

from __future__ import annotations

import errno
import hashlib
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from dfud.board import nvs
from dfud.board.flashmap import LAYOUTS, find
from dfud.board.image import IDENTITY, NAMESPACE, Identity
from dfud.board.look import look_untrusted
from dfud.board.stock import CHIP
from dfud.errors import PeerError
from dfud.model.espimage import hardware_name

NVS = find(LAYOUTS["4MB"], "nvs")  # the same in every size
ROM_BAUD = 115200
PIECE_BYTES = 0x10000  # that are read at once
AGAIN = "hold BOOT, press and release RESET, release BOOT, and run this again"
UNKNOWN = "something that cannot be read"


def _esptool() -> tuple[Any, Any, Any]:
    """Return esptool's commands, its logger's module and its util; imported when needed: it is an extra."""
    try:
        from esptool import cmds, logger, util  # type: ignore[import-untyped]
    except ImportError:
        raise PeerError("esptool is not installed: it comes with `pip install 'dfud[board]'`") from None
    return cmds, logger, util


def judged_untrusted(data: bytes, identity: bytes | None) -> tuple[bytes, int]:
    """Return what is written from offset 0 on, and the size of the flash that its map needs. Raises PeerError.

    identity: an NVS image of `dfuctl board factory`, which takes the place of that in `data`.
    """
    if len(data) == NVS.size and NAMESPACE in nvs.decode_untrusted(data):
        raise PeerError("this is the identity of one board: give the batch's board.bin, and this file with --identity")
    needed = look_untrusted(data).flash_bytes
    if data[:1] != b"\xe9" or b"dfud boot" not in data[: find(LAYOUTS["4MB"], "ota_0").offset]:
        raise PeerError(
            "it has no bootloader of dfud's, expected a file that `dfuctl board image` made; one of --keep-bootloader is written "
            "with the esptool command that was printed with it"
        )
    if identity is None:
        return data, needed
    if len(identity) != NVS.size or IDENTITY not in nvs.decode_untrusted(identity).get(NAMESPACE, {}):
        raise PeerError(
            f"--identity: {len(identity)} bytes without an identity, expected {NVS.size} as `dfuctl board factory` makes them"
        )
    return data[: NVS.offset] + identity + data[NVS.end :], needed


class Chip:
    """A chip in download mode, its flash attached. touched: its flash is no longer what it was."""

    def __init__(self, port: str, esp: Any, resets: bool) -> None:
        self.port, self.esp, self._resets = port, esp, resets
        self._progress: Callable[[int, int], None] | None = None
        self._done: tuple[int, int] | None = None
        self.touched = False

    def progressed(self, done: int, total: int) -> None:
        """What esptool's bar calls."""
        if self._progress is not None:
            self._done = done, total
            self._progress(done, total)

    def flash_bytes(self) -> int:
        """Return the size of the flash chip. Raises PeerError, also if it does not say."""
        cmds, _, util = _esptool()
        with _told(self.port, "the flash chip cannot be asked"):
            found = util.flash_size_bytes(cmds.detect_flash_size(self.esp))
        if not found:
            raise PeerError(
                f"{self.port}: the flash chip does not say its size: is it connected, and is nothing else on its pins? "
                "Otherwise flash by hand, with the line that `dfuctl board image` printed"
            )
        return int(found)

    def owner(self) -> str:
        """Return who the board is: a device's name, what is known otherwise, or "" if it is nobody. Raises PeerError."""
        with _told(self.port, "the board's identity cannot be read"):
            if not self.esp.IS_STUB:  # the ROM reads no flash, but makes a digest of it
                blank = hashlib.md5(b"\xff" * NVS.size, usedforsecurity=False).hexdigest()
                return "" if self.esp.flash_md5sum(NVS.offset, NVS.size) == blank else UNKNOWN
            found = nvs.decode_untrusted(self.esp.read_flash(NVS.offset, NVS.size)).get(NAMESPACE, {}).get(IDENTITY)
        if found is None:
            return ""
        try:
            identity = msgspec.json.decode(found if isinstance(found, bytes) else b"", type=Identity)
        except (msgspec.DecodeError, msgspec.ValidationError):
            return UNKNOWN
        return f"device {identity.device}" if identity.device else "a device with a claim code"

    def read(self, size: int, *, progress: Callable[[int, int], None]) -> bytes:
        """Return the flash's content from offset 0 on. Blank pieces are told by their MD5, and not read. Raises PeerError."""
        blank = hashlib.md5(b"\xff" * PIECE_BYTES, usedforsecurity=False).hexdigest()
        content = bytearray()
        with _told(self.port, "the flash cannot be read"):
            while len(content) < size:
                if self.esp.flash_md5sum(len(content), PIECE_BYTES) == blank:
                    content += b"\xff" * PIECE_BYTES
                else:
                    content += self.esp.read_flash(len(content), PIECE_BYTES)
                progress(len(content), size)
        return bytes(content)

    def write(self, content: bytes, flash_bytes: int, *, erase_all: bool, progress: Callable[[int, int], None]) -> None:
        """Write from offset 0 on, and compare the MD5 of the flash. progress(done, total) counts compressed bytes.

        Raises PeerError; the flash holds a part then.
        """
        cmds, _, _ = _esptool()
        self._progress = progress
        if erase_all and not self.esp.IS_STUB:  # the ROM cannot: blank bytes to the end of the map are the same
            content, erase_all = content.ljust(flash_bytes, b"\xff"), False
        self.esp.WRITE_FLASH_ATTEMPTS = 1  # a cable that was pulled: say so, and do not wait for it
        self.touched = True
        with _told(self.port, self._broken):
            cmds.write_flash(self.esp, [(0, content)], erase_all=erase_all, compress=True)

    def _part(self) -> str:
        return f" after {self._done[0] * 100 // max(1, self._done[1])} %" if self._done else ""

    def _broken(self) -> str:
        return f"flashing failed{self._part()}, and the board does not start until it is flashed anew"

    def left(self) -> str:
        """Return in which state a board is that somebody stopped flashing, and what to do."""
        if self.touched:
            dead = "the board does not start until it is flashed anew. Run this again; if nobody answers"
            return f"{self.port}: stopped{self._part()}: {dead}, {AGAIN}"
        start = "" if self._resets else "; press RESET, then it starts"
        return f"{self.port}: stopped; nothing was written, the flash is as it was{start}"

    def reset(self) -> bool:
        """Start what was flashed; False if that takes a finger."""
        if self._resets:
            with suppress(PeerError), _told(self.port, "the board was not reset"):
                self.esp.hard_reset()
                return True
        return False


@contextmanager
def attached(port: str, baud: int, *, stub: bool) -> Iterator[Chip]:
    """Yield the chip at a port. Raises PeerError if there is no port, no answer, or another chip."""
    cmds, logger, _ = _esptool()
    import serial  # type: ignore[import-untyped]  # it ships no annotations; esptool brings it

    holder: list[Chip] = []
    template: Any = logger.TemplateLogger

    class Quiet(template):  # type: ignore[misc]  # esptool ships no annotations
        def print(self, *_: Any, **__: Any) -> None:
            pass

        note = warning = error = print

        def stage(self, finish: bool = False) -> None:
            pass

        def progress_bar(self, cur_iter: int, total_iters: int, *_: Any, **__: Any) -> None:
            if holder:
                holder[0].progressed(cur_iter, total_iters)

        def set_verbosity(self, verbosity: str) -> None:
            pass

    try:
        line = serial.serial_for_url(port, exclusive=True, baudrate=ROM_BAUD)
    except (OSError, ValueError) as error:
        raise PeerError(no_port(port, error)) from None
    before = logger.EspLog.instance
    logger.log.set_logger(Quiet())
    try:
        with line:
            with _told(port, "no ESP32-C3 answers"):
                resets = _resets(line)
                esp = cmds.detect_chip(line, connect_mode="default-reset" if resets else "no-reset")
            holder.append(Chip(port, esp, resets))
            try:
                _judge(port, esp)
                with _told(port, "the chip does not take the commands that flash it"):
                    if stub:
                        esp = holder[0].esp = esp.run_stub()
                    if baud != ROM_BAUD:
                        esp.change_baud(baud)
                    cmds.attach_flash(esp)
                yield holder[0]
            finally:
                if not holder[0].touched:  # it was running: let it go on
                    holder[0].reset()
    finally:
        logger.EspLog.instance = before


def _judge(port: str, esp: Any) -> None:
    if (found := hardware_name(esp.CHIP_NAME)) != CHIP:
        raise PeerError(
            f"{port}: the chip is {found}, expected {CHIP}: dfud's bootloader runs on no other; is this the port?"
        )
    if esp.secure_download_mode:
        raise PeerError(
            f"{port}: the chip is in secure download mode and lets nothing be compared; it cannot be flashed here"
        )


@contextmanager
def _told(port: str, what: str | Callable[[], str]) -> Iterator[None]:
    """Turn all that esptool, pyserial and odd answers raise into a PeerError that begins with `what`."""
    import serial

    _, _, util = _esptool()
    wrong = (util.FatalError, util.UnsupportedCommandError, struct.error, ValueError, LookupError, TypeError)
    lost: tuple[type[Exception], ...] = (OSError, serial.SerialException)
    if sys.platform != "win32":
        import termios

        lost = (*lost, termios.error)
    try:
        yield
    except lost:
        gone = "the line broke off" if Path(port).exists() else "the port is gone"
        raise PeerError(
            f"{port}: {_said(what)}: {gone}. Check the cable, plug it in again, and run this again"
        ) from None
    except wrong as error:
        reason = (str(error).strip().splitlines() or [""])[0].partition(". ")[0].rstrip(".! ") or type(error).__name__
        raise PeerError(f"{port}: {_said(what)}: {reason}. Check cable and port, {AGAIN}") from None


def _said(what: str | Callable[[], str]) -> str:
    return what if isinstance(what, str) else what()


def _resets(line: Any) -> bool:
    """Return whether the port has the lines (DTR, RTS) that take a chip into download mode and out of it."""
    try:
        line.cts  # noqa: B018  # what reads one line asks the driver for all of them
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL):
            raise
        return False
    return True


def no_port(port: str, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return f"{port}: no such port. Is the board plugged in? `ls /dev/ttyACM* /dev/ttyUSB*` shows the ports"
    if number in (errno.EACCES, errno.EPERM):
        return f"{port}: not allowed to open it. Add yourself to its group: `sudo usermod -aG dialout $USER`, and log in again"
    if number in (errno.EAGAIN, errno.EBUSY):
        return f"{port}: another program has the port. Close it (a terminal, mpremote, a monitor), and run this again"
    return f"{port}: not a serial port that can be opened: {error}"
