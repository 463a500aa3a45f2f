"""`dfuctl bridge` from outside: what it refuses, what it says of a line on which nothing right comes, how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial
import trio
from click.testing import CliRunner, Result

from dfud.cli import bridge_ports
from dfud.cli.bridge import bridge
from dfud.cli.bridge_relay import Relay, judged_server, trust
from dfud.cli.main import main
from dfud.wire.serialline import Answer, Question, What, framed
from dfud.wire.subset import encode
from tests.e2e.serialline import Bridge
from tests.real_parts import require

PAGE = (Path(__file__).parents[2] / "docs" / "serial.md").read_text("utf-8")

SECRET = "s3cret-of-the-lamp"


def asked(what: What = What.STATUS, message: bytes = b"status", number: int = 0, name: str = "lamp1@lamps", ask: int = 1) -> bytes:
    return framed(b"A" + ask.to_bytes(4, "big") + encode({0: what, 1: f"{name}:{SECRET}", 2: message, 3: number, 4: 512, 5: 6304}))


class Pty:
    """A line whose far end is the test's."""

    def __init__(self) -> None:
        self.end, self._other = os.openpty()
        tty.setraw(self._other)
        os.set_blocking(self.end, False)
        self.path = Path(os.ttyname(self._other))

    async def read(self) -> bytes:
        await trio.lowlevel.wait_readable(self.end)
        return os.read(self.end, 65536)

    def close(self) -> None:
        for end in (self.end, self._other):
            os.close(end)


@pytest.fixture
def line() -> Iterator[Pty]:
    found = Pty()
    yield found
    found.close()


def run(*options: str) -> Result:
    return CliRunner().invoke(main, ["bridge", *options])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--server", "http://192.168.1.2:8880"), "cross the network in clear: give https, or --plain"),
        (("--server", "ftp://127.0.0.1"), "expected http://host:port or https://host:port"),
        (("--server", "http://127.0.0.1/v1"), "expected http://host:port"),
        (("--server", "http://me:word@127.0.0.1"), "expected http://host:port"),
        (("--server", "http://127.0.0.1:1", "--pin", __file__), "a certificate needs https"),
        (("--server", "https://127.0.0.1:1", "--pin", __file__), "no certificate, expected PEM or DER"),
        (("--server", "https://127.0.0.1:1", "--pin", __file__, "--ca", __file__), "give one of them"),
        (("--server", "http://127.0.0.1:1", "--port", "/dev/none"), "the same one twice"),
        (("--server", "http://127.0.0.1:1", "--port", ""), "an empty name, expected a serial line"),
        (("--server", "https://dfud.example:99999"), "port 99999, expected 1 to 65535"),
    ],
)
def test_what_cannot_be_right_is_said_before_a_port_is_opened(options: tuple[str, ...], said: str) -> None:
    found = run("--port", "/dev/none", *options)
    assert found.exit_code == 1 and said in found.output


def test_plain_http_is_taken_where_it_is_meant_or_stays_on_this_machine() -> None:
    assert str(judged_server("http://192.168.1.2:8880", None, True)) == "http://192.168.1.2:8880"
    for url in ("http://127.0.0.1:8880", "http://[::1]:8880", "http://localhost:8880"):
        assert judged_server(url, None, False).port == 8880


def test_a_port_that_is_in_use_or_none_is_said_and_ends_it(line: Pty, tmp_path: Path) -> None:
    with serial.Serial(str(line.path), exclusive=True):
        found = run("--port", str(line.path), "--server", "http://127.0.0.1:1")
    assert found.exit_code == 1 and "another program has the port" in found.output
    file = tmp_path / "file"
    file.write_text("no port")
    found = run("--port", str(file), "--server", "http://127.0.0.1:1")
    assert found.exit_code == 1 and "not a serial port" in found.output


def test_a_port_without_permission_names_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise serial.SerialException(13, "could not open port")

    monkeypatch.setattr(serial, "Serial", refuse)
    found = run("--port", "/dev/ttyUSB0", "--server", "http://127.0.0.1:1")
    assert found.exit_code == 1 and "usermod -aG dialout" in found.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_port_that_is_not_there_is_waited_for_and_signals_end_it(
    nursery: trio.Nursery, tmp_path: Path, line: Pty, number: int
) -> None:
    port = tmp_path / "ttyUSB0"
    running = Bridge("http://127.0.0.1:1", port)
    await nursery.start(running.run)
    await running.says("no such port yet; waiting for it")
    port.symlink_to(line.path)
    await running.says("open, 115200 baud")
    os.write(line.end, asked())
    told = await running.says("lamp1@lamps: no answer of the server: ")
    assert "refused" in told.lower() or "failed" in told.lower()
    assert await running.stop(number) == 0
    assert SECRET not in "\n".join(running.lines)


class NoServer:
    """A relay that answers nothing until it is told to."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.answer = trio.Event()
        self.cancelled = 0

    async def ask(self, question: Question) -> Answer:
        self.asked.append(question)
        try:
            await self.answer.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        return Answer(202, b"")


async def port_of(line: Pty, nursery: trio.Nursery, *, console: bool = False) -> tuple[NoServer, list[str]]:
    relay = NoServer()
    told: list[str] = []

    def tell(_: str, text: str, **values: object) -> None:
        json.dumps(values)
        told.append(text)

    port = bridge_ports.Port(str(line.path), 115200, relay, tell, console=console)  # type: ignore[arg-type]
    nursery.start_soon(port.run)
    await said(told, "open, 115200 baud")
    return relay, told


async def said(told: list[str], text: str) -> str:
    with trio.fail_after(60):
        while True:
            for line in told:
                if text in line:
                    return line
            await trio.sleep(0.02)


async def test_a_port_that_never_was_there_is_not_told_to_be_gone(
    nursery: trio.Nursery, tmp_path: Path, line: Pty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge_ports, "AGAIN_S", 0.01)
    real, told, looked = serial.Serial, [], []

    def opened(*args: object, **how: object) -> serial.Serial:
        looked.append(args)
        return real(*args, **how)

    monkeypatch.setattr(serial, "Serial", opened)
    path = tmp_path / "ttyUSB0"
    port = bridge_ports.Port(str(path), 115200, NoServer(), lambda _, text, **values: told.append(text))  # type: ignore[arg-type]
    nursery.start_soon(port.run)
    with trio.fail_after(60):
        while len(looked) < 3:
            await trio.sleep(0.02)
    assert told == ["no such port yet; waiting for it. Is the board plugged in?"]
    path.symlink_to(line.path)
    await said(told, "open, 115200 baud")
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("comes", "text"),
    [
        (b"", "nothing heard: does the board run"),
        (bytes(range(128, 192)) * 8, "neither text nor frames: is 115200 the board's rate?"),
        (b"lamp: on\r\n" * 40, "text, and no frame: is the agent started"),
    ],
)
async def test_a_line_on_which_nothing_right_comes_is_explained(
    nursery: trio.Nursery, line: Pty, monkeypatch: pytest.MonkeyPatch, comes: bytes, text: str
) -> None:
    monkeypatch.setattr(bridge_ports, "SILENT_S", 0.3)
    _, told = await port_of(line, nursery)
    if comes:
        os.write(line.end, comes)
    await said(told, text)
    nursery.cancel_scope.cancel()


async def test_a_new_question_ends_the_one_before_and_silence_ends_the_last(
    nursery: trio.Nursery, line: Pty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge_ports, "SILENT_S", 1.0)
    relay, told = await port_of(line, nursery)
    os.write(line.end, asked(number=60, ask=1))
    os.write(line.end, asked(number=60, ask=2))
    with trio.fail_after(60):
        while len(relay.asked) < 2 or not relay.cancelled:
            await trio.sleep(0.02)
    await said(told, "the device is silent; waiting for it")
    with trio.fail_after(60):
        while relay.cancelled < 2:
            await trio.sleep(0.02)
    assert len(relay.asked) == 2
    nursery.cancel_scope.cancel()


async def test_a_port_that_never_was_there_is_not_said_to_be_gone(
    nursery: trio.Nursery, tmp_path: Path, line: Pty, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    looked = trio.Event()
    tries = 0
    real = serial.Serial

    def opened(*values: object, **more: object) -> object:
        nonlocal tries
        tries += 1
        if tries == 4:
            looked.set()
        return real(*values, **more)

    monkeypatch.setattr(bridge_ports, "AGAIN_S", 0.01)
    monkeypatch.setattr(serial, "Serial", opened)
    tell = lambda _, text, **values: told.append(text)  # noqa: E731
    port = bridge_ports.Port(str(tmp_path / "ttyUSB0"), 115200, NoServer(), tell)  # type: ignore[arg-type]
    nursery.start_soon(port.run)
    with trio.fail_after(60):
        await looked.wait()
    (tmp_path / "ttyUSB0").symlink_to(line.path)
    await said(told, "open, 115200 baud")
    assert [text.partition(";")[0] for text in told] == ["no such port yet", "open, 115200 baud"]


async def test_a_fault_on_one_port_costs_that_one_a_question_and_the_others_nothing(
    nursery: trio.Nursery, line: Pty, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge_ports, "AGAIN_S", 0.05)
    other = Pty()
    relay, told = await port_of(other, nursery)
    broken, heard = await port_of(line, nursery)

    async def fault(question: Question) -> Answer:
        raise KeyError(question.number)

    works = broken.ask
    broken.ask = fault  # type: ignore[method-assign]
    os.write(line.end, asked(number=7))
    await said(heard, "a fault of dfuctl's own")
    assert "KeyError: 7" in capsys.readouterr().err
    broken.ask = works  # type: ignore[method-assign]
    with trio.fail_after(60):
        while heard.count("open, 115200 baud") < 2:
            await trio.sleep(0.02)
    os.write(line.end, asked(number=8, ask=2))
    os.write(other.end, asked(number=9))
    with trio.fail_after(60):
        while not (broken.asked and relay.asked):
            await trio.sleep(0.02)
    assert heard.count("open, 115200 baud") == 2 and told.count("open, 115200 baud") == 1
    nursery.cancel_scope.cancel()
    other.close()


async def test_prints_between_frames_are_shown_as_lines_and_what_is_hidden_in_them_is_not_obeyed(
    nursery: trio.Nursery, line: Pty
) -> None:
    relay, told = await port_of(line, nursery, console=True)
    os.write(line.end, b"lamp: on\r\n" + asked() + b"lamp: \x1b[2Joff\r\nthen")
    assert await said(told, "lamp: on") == "| lamp: on"
    assert await said(told, "off") == "| lamp: \x1b[2Joff", "dfuctl shows what it prints visibly"
    assert len(relay.asked) == 1
    nursery.cancel_scope.cancel()


async def test_a_board_can_have_three_requests_sent_and_no_other(nursery: trio.Nursery) -> None:
    """Whatever stands on the line: one server, three paths, the board's own credentials, no redirect followed."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    heard: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        heard.append(await stream.receive_some(65536))
        head = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/stolen\r\n"
        await stream.send_all(head + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        await stream.aclose()

    nursery.start_soon(trio.serve_listeners, answer, listeners)
    package = bytes(range(16))
    async with Relay(judged_server(f"http://127.0.0.1:{port}", None, False), trust(None), None) as relay:
        for what, message, number in ((What.STATUS, b"s", 7), (What.CHUNK, package, 3), (What.ENROL, b"e", 0)):
            login = "" if what is What.ENROL else f"lamp1@lamps:{SECRET}"
            answered = await relay.ask(Question(b"0001", what, login, message, number, 512, 100))
            assert answered == Answer(302, b"")
    firsts = [request.split(b" HTTP/1.1\r\n")[0].decode() for request in heard]
    assert firsts == ["POST /v1/dfu?ct=7", f"GET /v1/dfu/{package.hex()}/3", "POST /v1/enrol"]
    assert [b"uthorization: Basic " in request for request in heard] == [True, True, False]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("503 away\r\nRetry-After: 17", Answer(503, b"17")),
        ("429 too many\r\nretry-after: 3600", Answer(429, b"3600")),
        ("504 the server's own\r\nRetry-After: 5", Answer(503, b"5")),
        ("503 away", Answer(503, b"")),
        ("503 away\r\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT", Answer(503, b"")),
        ("503 away\r\nRetry-After: 1000000", Answer(503, b"")),
        ("202 nothing new\r\nRetry-After: 17", Answer(202, b"")),
    ],
)
async def test_how_long_dfud_wants_to_be_left_alone_is_handed_on(nursery: trio.Nursery, head: str, expected: Answer) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(f"HTTP/1.1 {head}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        await stream.aclose()

    nursery.start_soon(trio.serve_listeners, answer, listeners)
    async with Relay(judged_server(f"http://127.0.0.1:{port}", None, False), trust(None), None) as relay:
        assert await relay.ask(Question(b"0001", What.STATUS, "", b"s", 0, 512, 1024)) == expected
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("body", "told"), [(bytes(101), b"more than 100 bytes"), (bytes(100), b"is no dfud")])
async def test_an_answer_that_is_too_long_or_no_dfuds_is_none(nursery: trio.Nursery, body: bytes, told: bytes) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await stream.aclose()

    nursery.start_soon(trio.serve_listeners, answer, listeners)
    async with Relay(judged_server(f"http://127.0.0.1:{port}", None, False), trust(None), None) as relay:
        answered = await relay.ask(Question(b"0001", What.STATUS, "a@b:c", b"s", 0, 512, 100))
    assert answered.status == 504 and told in answered.body
    nursery.cancel_scope.cancel()


def test_help_teaches() -> None:
    text = run("--help").output
    for word in ("--pin", "--console", "Ctrl-C", "/dev/ttyUSB0", "https://"):
        assert word in text


def test_each_command_of_the_page_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.pem").write_text("")
    lines = re.findall(r"^(?:ExecStart=\S*/)?dfuctl (?:-o json )?bridge (.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        given = bridge.make_context("bridge", shlex.split(line)).params
        assert given["ports"] and given["server"].startswith("http")


def test_the_service_of_the_page_is_one(tmp_path: Path) -> None:
    analyze = require("systemd-analyze")
    (unit,) = re.findall(r"^```ini\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "dfu-bridge.service").write_text(unit.replace("/usr/local/bin/dfuctl", sys.executable))
    command = [analyze, "verify", "--man=no", str(tmp_path / "dfu-bridge.service")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "dfu-bridge" not in run.stderr, run.stderr
