"""`dfuctl recover` against the bootloader's ELF, over a pseudo-terminal."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootloader.sim.boot import BootResult
from bootloader.sim.images import KEYS_AT, SLOTS, Flash, application, envelope, image, key, key_record
from bootloader.sim.scenarios import calls
from devicefw.sim.serial import SerialLine
from dfud.cli.recover import escape, unescape
from tests.bootloader.machine import NEW, OLD, POWER_ON, SIGNER, SOFTWARE, boot, device, machine

TABLE_AT = 0x39A000 + 0x60000 - 0x4000
BAD = b"\0" * 24


class Waiting:
    """A device in recovery: its port, and what became of it."""

    def __init__(self, flash: Flash, *, strap: bool) -> None:
        self.flash = flash
        self.port = ""
        self.results: Queue[BootResult | BaseException] = Queue()
        self._ports: Queue[str] = Queue()
        self._off = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(strap,))

    def _run(self, strap: bool) -> None:
        line = _Line(self._ports.put, self._off)
        try:
            self.results.put(machine().boot(self.flash, reset_reason=POWER_ON, store=[0] * 8, line=line, strap=strap))
        except BaseException as error:  # carried to the test
            self.results.put(error)
        finally:
            line.close()

    def __enter__(self) -> Waiting:
        self._thread.start()
        self.port = self._ports.get(timeout=30)
        return self

    def __exit__(self, *error: object) -> None:
        self._off.set()
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()


class _Line(SerialLine):
    """Without trio: switched off by an event."""

    def __init__(self, on_open: object, off: threading.Event) -> None:
        super().__init__(on_open)  # type: ignore[arg-type]
        self._off = off

    def receive(self) -> bytes:
        import os
        import select

        end = self._open()
        while not self._off.is_set():
            if select.select([end], [], [], 0.02)[0]:
                return os.read(end, 4096)
        return b""


@contextmanager
def waiting(flash: Flash, *, strap: bool = False) -> Iterator[Waiting]:
    boot(device())  # the parts are there, or the test is skipped
    with Waiting(flash, strap=strap) as found:
        yield found


def dfuctl(tmp_path: Path, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "dfud.cli", "--config", str(tmp_path / "c.toml"), "--app", "pump", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout + run.stderr


def broken(*, signed: bool = False) -> Flash:
    flash = device(signed=signed, phase=0)
    for slot in SLOTS:
        flash.put(slot, BAD)
    return flash


def file(tmp_path: Path, name: str, data: bytes) -> str:
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


def test_a_device_that_does_not_boot_is_brought_back(tmp_path: Path) -> None:
    flash = broken()
    firmware = application("rescue", 30000)
    with waiting(flash) as device:
        text = dfuctl(tmp_path, "recover", "--port", device.port, file(tmp_path, "r.bin", firmware), "--version", "2.0")
        result = device.results.get(timeout=30)
    assert "no slot can be booted" in text
    assert "slot 1: no image" in text
    assert "boots it on trial" in text
    assert isinstance(result, BootResult)
    assert boot(flash).slot == 0
    assert flash.read(SLOTS[0], len(firmware)) == firmware
    assert (flash.state()["phase"], flash.state()["previous"]) == (1, 0)


def test_a_second_stage_bootloader_is_not_sent(tmp_path: Path) -> None:
    """Nor is anything else without an application description, unless somebody says so. The port is not even opened."""
    arguments = ["recover", "--port", str(tmp_path / "none"), file(tmp_path, "second.bin", NEW), "--version", "2.0"]
    assert "no application description" in dfuctl(tmp_path, *arguments, code=1)
    assert "no such port" in dfuctl(tmp_path, *arguments, "--raw", code=1)


def test_the_pin_asks_for_recovery_and_a_delta_is_enough(tmp_path: Path) -> None:
    flash = device(phase=0)
    with waiting(flash, strap=True) as found:
        state = json.loads(dfuctl(tmp_path, "-o", "json", "recover", "--port", found.port))
        assert (state["reason"], state["current"], state["slots"][1]["version"]) == ("the recovery pin is held", 1, "1.1")
        arguments = ["--raw", "--version", "1.2", "--base", file(tmp_path, "new.bin", NEW)]
        dfuctl(tmp_path, "recover", "--port", found.port, file(tmp_path, "o.bin", OLD + b""), *arguments)
    assert boot(flash).slot == 0
    assert flash.read(SLOTS[0], len(OLD)) == OLD
    assert flash.state()["previous"] == 1


@pytest.mark.parametrize(
    ("reason", "pressed_ms", "recovers"),
    [
        (POWER_ON, 300, True),  # by a finger, once the boot line is there
        (POWER_ON, 990, True),
        (POWER_ON, 1200, False),  # too late: it boots
        (SOFTWARE, 0, True),  # a reset from within does not make the ROM look at the strap
        (SOFTWARE, 300, False),  # there is no waiting for a finger
    ],
)
def test_the_pin_is_the_roms_at_power_on_and_ours_afterwards(reason: int, pressed_ms: int, recovers: bool) -> None:
    found = machine().boot(device(phase=0), reset_reason=reason, store=[0] * 8, strap=pressed_ms)
    assert ("recovery: waiting" in found.console) == recovers, found.console
    assert (found.slot is None) == recovers
    assert ("press and hold pin 9" in found.console) == (reason == POWER_ON)


def test_a_pin_that_is_low_at_power_on_is_the_roms() -> None:
    found = machine().boot(device(phase=0), reset_reason=POWER_ON, store=[0] * 8, strap=0)
    assert (found.slot, found.console) == (None, "waiting for download\n"), "the bootloader never ran"


def test_a_mapped_delta_recovers(tmp_path: Path) -> None:
    old, new = calls("old"), calls("new", 8)
    flash = device(phase=0)
    flash.install(1, old, envelope(old, version="1.1", sequence=2))
    with waiting(flash, strap=True) as found:
        arguments = ["--raw", "--version", "1.2", "--base", file(tmp_path, "old.bin", old), "--slot", "0"]
        dfuctl(tmp_path, "recover", "--port", found.port, file(tmp_path, "new.bin", new), *arguments)
    assert flash.read(SLOTS[0], len(new)) == new
    assert flash.read(TABLE_AT, 8) != b"\xff" * 8  # so it was one
    assert boot(flash).slot == 0


def test_only_a_trusted_key_may_recover_a_device_with_keys(tmp_path: Path) -> None:
    flash = broken(signed=True)
    assert flash.read(KEYS_AT, 256) == key_record(SIGNER)
    firmware = file(tmp_path, "r.bin", NEW)
    right = file(tmp_path, "right", envelope(NEW, signer=SIGNER, sequence=5))
    wrong = file(tmp_path, "wrong", envelope(NEW, signer=key(8), sequence=5))
    with waiting(flash) as found:
        before = dict(flash.sectors)
        text = dfuctl(tmp_path, "recover", "--port", found.port, firmware, "--raw", "--manifest", wrong, code=1)
        assert "no key that the device trusts signed it" in text
        text = dfuctl(tmp_path, "recover", "--port", found.port, firmware, "--raw", "--version", "9", code=1)
        assert "no key that the device trusts signed it" in text
        assert flash.sectors == before
        dfuctl(tmp_path, "recover", "--port", found.port, firmware, "--raw", "--manifest", right)
    assert boot(flash).slot == 0


def test_diagnostics_are_read_out(tmp_path: Path) -> None:
    flash = broken()
    target = tmp_path / "records"
    with waiting(flash) as found:
        text = dfuctl(tmp_path, "recover", "--port", found.port, "--diagnostics", str(target))
        assert "1 diagnostics records" in text
        found._off.set()
    assert target.read_bytes() == flash.diagnostics()[0]


def test_a_cable_pulled_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    """What was written is kept; the next attempt goes on from a slot that does not boot by itself."""
    flash = device(phase=0)
    with waiting(flash, strap=True) as found:
        import serial

        from dfud.cli.recover import BEGIN, CHUNK, Line
        from dfud.package.build import build_full

        with serial.Serial(found.port, timeout=0.1) as port:
            line = Line(port)
            data = image("big", 60000)
            line.request(BEGIN, bytes([0, 1]) + b"\xff" * 32 + envelope(data, sequence=3))
            line.request(CHUNK, build_full(data, 4112).chunks[0])
    assert boot(flash).slot == 1
    assert flash.state()["slot"] == 1


def test_the_line_stays_until_the_host_has_read_the_last_answer() -> None:
    """A pseudo-terminal whose other end is closed throws away what was not read; a wire would have carried it."""
    import os

    ports: Queue[str] = Queue()
    line = SerialLine(ports.put)
    line.send(b"the last answer")
    host = os.open(ports.get(), os.O_RDWR | os.O_NOCTTY)
    closing = threading.Thread(target=line.close)
    closing.start()
    closing.join(timeout=0.2)
    assert closing.is_alive()
    assert os.read(host, 100) == b"the last answer"
    closing.join(timeout=30)
    assert not closing.is_alive()
    os.close(host)


def test_a_port_that_vanishes_with_the_answer_to_boot_is_no_failure() -> None:
    import os
    import tty

    import serial

    from dfud.cli.recover import Line

    ends = os.openpty()
    tty.setraw(ends[1])
    with serial.Serial(os.ttyname(ends[1]), timeout=0.1) as port:
        os.close(ends[1])

        def hang_up() -> None:
            os.read(ends[0], 100)
            os.close(ends[0])

        device = threading.Thread(target=hang_up)
        device.start()
        Line(port).boot()
        device.join(timeout=30)


def test_a_port_that_is_none_is_said(tmp_path: Path) -> None:
    assert "no such port" in dfuctl(tmp_path, "recover", "--port", str(tmp_path / "none"), code=1)


def test_damaged_frames_are_answered_and_nothing_else_happens(tmp_path: Path) -> None:
    flash = broken()
    with waiting(flash) as found:
        before = dict(flash.sectors)
        import serial

        with serial.Serial(found.port, timeout=1) as port:
            port.write(b"\xc0\x01\x02\x03\x04\x05\x06\xc0" + b"\xc0\xdb\xc0" + b"noise\xc0")
            answer = port.read(8)
            assert answer[:3] == b"\xc0\x80\x10"
        assert "slot 0" in dfuctl(tmp_path, "recover", "--port", found.port)
        assert flash.sectors == before


@given(st.binary(max_size=200))
def test_frames_carry_every_byte(data: bytes) -> None:
    framed = escape(data)
    assert framed[0] == framed[-1] == 0xC0
    assert b"\xc0" not in framed[1:-1]
    assert unescape(framed[1:-1]) == data
