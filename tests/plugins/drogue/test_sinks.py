"""Where telemetry goes: into a file, to a URL, and what a device is told when it cannot."""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import json
import os
from pathlib import Path

import httpx
import pytest
import trio
from dfud_drogue.cloudevents import cloud_event
from dfud_drogue.config import EventLogConfig, WebhookConfig
from dfud_drogue.log_sink import LogSink
from dfud_drogue.webhook import WebhookSink, signature
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import Bus, ConfigError, StoreError, Telemetry


def telemetry(body: bytes = b'{"t":1}', content_type: str = "", number: int = 1) -> Telemetry:
    return Telemetry(
        app="app1",
        device="dev1",
        sender="gw1",
        channel="temp",
        body=body,
        content_type=content_type,
        data_schema="urn:s",
        at_s=1.5,
        id=f"id-{number}",
    )


def test_an_event_has_the_attributes_of_drogues() -> None:
    assert json.loads(cloud_event(telemetry(), "here")) == {
        "specversion": "1.0", "id": "id-1", "type": "io.drogue.event.v1", "source": "drogue://app1/dev1",
        "subject": "temp", "time": "1970-01-01T00:00:01.500Z", "application": "app1", "device": "dev1",
        "sender": "gw1", "partitionkey": "app1/gw1", "instance": "here", "dataschema": "urn:s",
        "datacontenttype": "application/json", "data": {"t": 1},
    }  # fmt: skip


DEEP = b"[" * 500 + b"]" * 500
ODD = [b"1e999", b"-1e999", b'{"a":[1e400]}', b"NaN", DEEP, b"[" * 60_000, b"[" * 60_000 + b"]" * 60_000, b"\xff\xfe", b"9" * 5000]


@pytest.mark.parametrize("body", ODD)
def test_what_no_json_reader_takes_travels_as_bytes(body: bytes) -> None:
    event = json.loads(cloud_event(telemetry(body), "here"))
    assert "data" not in event and base64.b64decode(event["data_base64"]) == body


@pytest.mark.parametrize("body", [b'"\\ud800"', b'{"\\udfff":1}'])
def test_half_a_character_arrives_as_it_was_sent(body: bytes) -> None:
    assert json.loads(cloud_event(telemetry(body), "here"))["data"] == json.loads(body)


@given(st.text(max_size=30), st.binary(max_size=30))
def test_no_header_makes_an_event_fail(content_type: str, body: bytes) -> None:
    json.loads(cloud_event(telemetry(body, content_type), "here"))


@given(st.binary(max_size=40), st.sampled_from(["", "application/json", "text/plain", "a/b+json; x=y"]))
def test_no_body_is_lost_in_an_event(body: bytes, content_type: str) -> None:
    event = json.loads(cloud_event(telemetry(body, content_type), "here"))
    if "data" in event:
        assert event["data"] == json.loads(body)
    elif "data_base64" in event:
        assert base64.b64decode(event["data_base64"]) == body
    else:
        assert json.loads(body) is None


async def test_what_is_taken_is_in_the_file(nursery: trio.Nursery, tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    sink = LogSink(EventLogConfig(str(path)), "here")
    await nursery.start(sink.run, Bus())
    async with trio.open_nursery() as many:
        for number in range(50):
            many.start_soon(sink.take, telemetry(number=number))
    ids = {json.loads(line)["id"] for line in path.read_bytes().splitlines()}
    assert ids == {f"id-{n}" for n in range(50)}


async def test_a_full_file_is_put_aside(nursery: trio.Nursery, tmp_path: Path) -> None:
    path = tmp_path / "e"
    sink = LogSink(EventLogConfig(str(path), max_bytes=4096, keep=2), "here")
    await nursery.start(sink.run, Bus())
    for number in range(60):
        await sink.take(telemetry(number=number))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "e.1", "e.2"]
    last = json.loads(path.read_bytes().splitlines()[-1])
    assert last["id"] == "id-59"


async def test_a_file_that_cannot_be_written_is_told(nursery: trio.Nursery, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sink = LogSink(EventLogConfig(str(tmp_path / "file" / "e")), "here")
    await nursery.start(sink.run, Bus())
    with pytest.raises(StoreError) as caught:
        await sink.take(telemetry())
    assert caught.value.retryable


async def test_what_the_disk_did_not_take_is_told_and_taken_out_again(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e"
    sink = LogSink(EventLogConfig(str(path)), "here")
    await nursery.start(sink.run, Bus())
    await sink.take(telemetry(number=1))

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreError, match="Input/output error"):
            await sink.take(telemetry(number=2))
    await sink.take(telemetry(number=3))
    assert [json.loads(line)["id"] for line in path.read_bytes().splitlines()] == ["id-1", "id-3"]


async def test_an_error_that_nobody_foresaw_costs_its_lines_and_not_the_sink(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e"
    sink = LogSink(EventLogConfig(str(path)), "here")
    await nursery.start(sink.run, Bus())

    def fail(fd: int) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreError, match="RuntimeError"):
            await sink.take(telemetry(number=1))
    await sink.take(telemetry(number=2))


@pytest.mark.parametrize("headers", [b"transfer-encoding: chunked\r\n", b""])
async def test_of_an_endless_answer_only_the_beginning_is_read(
    nursery: trio.Nursery, tmp_path: Path, headers: bytes
) -> None:
    """The sink's client talks to a server that answers with as many bytes as anybody takes."""
    sent = [0]
    closed = trio.Event()
    piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        try:
            await stream.send_all(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n")
            while True:
                await stream.send_all(piece)
                sent[0] += len(piece)
        except trio.BrokenResourceError:
            closed.set()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, [listener])
    (tmp_path / "secret").write_bytes(b"0123456789abcdef")
    url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
    sink = WebhookSink(WebhookConfig(url, str(tmp_path / "secret")), "here")
    await nursery.start(sink.run, Bus())
    with trio.fail_after(60):
        await sink.take(telemetry())
        await closed.wait()
    assert sent[0] < 32 << 20, "what fits into the sockets' buffers, and no more"
    nursery.cancel_scope.cancel()


def webhook(tmp_path: Path, answers: list[int], **options: object) -> tuple[WebhookSink, list[httpx.Request]]:
    """Return a sink whose client gets `answers` (0: no connection) instead of a network, and what it sent."""
    (tmp_path / "secret").write_bytes(b"0123456789abcdef\n")
    config = WebhookConfig("http://hook.test/x", str(tmp_path / "secret"), **options)  # type: ignore[arg-type]  # tests name what they set
    sink = WebhookSink(config, "here", lambda: 1700000000.0)
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        status = answers.pop(0)
        if status == 0:
            raise httpx.ConnectError("refused")
        return httpx.Response(status)

    sink._client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return sink, sent


async def test_an_event_is_signed_and_tried_again(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    sink, sent = webhook(tmp_path, [500, 0, 204], attempts=3)
    await sink.take(telemetry())
    assert len(sent) == 3
    assert trio.current_time() == pytest.approx(1.5)
    request = sent[-1]
    mac = hmac.new(b"0123456789abcdef", b"id-1.1700000000." + request.content, hashlib.sha256).digest()
    assert request.headers["webhook-signature"] == "v1," + base64.b64encode(mac).decode()
    assert request.headers["webhook-id"] == "id-1"


def test_the_signature_is_that_of_the_specification() -> None:
    # Example of the Standard Webhooks specification, its secret decoded.
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert (
        signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


async def test_a_dead_webhook_makes_the_device_keep_its_event(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    sink, _sent = webhook(tmp_path, [0, 503], attempts=2)
    with pytest.raises(StoreError, match="answered 503") as caught:
        await sink.take(telemetry())
    assert caught.value.retryable
    assert "0123456789abcdef" not in str(caught.value)


def test_a_webhook_that_cannot_be_right_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("short")
    for config, text in (
        (WebhookConfig("ftp://x"), "expected http"),
        (WebhookConfig("http://x", str(tmp_path / "none")), "No such file"),
        (WebhookConfig("http://x", str(tmp_path / "short")), "5 bytes"),
    ):
        with pytest.raises(ConfigError, match=text):
            WebhookSink(config, "here")
