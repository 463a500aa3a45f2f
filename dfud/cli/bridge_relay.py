"""What `dfuctl bridge` asks dfud for a device: the three requests of docs/protocol.md, "Over HTTP", and no other, to one server."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path

import click
import httpx

from dfud.cli.client import CliError
from dfud.wire.serialline import Answer, Question, What

CONNECT_S = 10.0
ANSWER_S = 60.0  # on top of what a device waits for something new
LOOPBACK = ("localhost", "127.0.0.1", "::1")
NO_ANSWER = 504
WORDS_MAX = 120
SECONDS_DIGITS = 6  # of Retry-After


def judged_server(url: str, certificate: Path | None, plain: bool) -> httpx.URL:
    """Return the url of dfud's device plane. Raises CliError that says what is wrong with it."""
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise CliError(f"--server {url}: {error}") from None
    if found.scheme not in ("http", "https") or not found.host or found.path not in ("", "/") or found.userinfo:
        raise CliError(f"--server {url}: expected http://host:port or https://host:port, where devices reach dfud")
    if found.port is not None and not 0 < found.port < 65536:
        raise CliError(f"--server {url}: port {found.port}, expected 1 to 65535")
    if found.scheme == "http" and certificate is not None:
        raise CliError(f"--server {url}: a certificate needs https")
    if found.scheme == "http" and found.host not in LOOPBACK and not plain:
        raise CliError(
            f"--server {url}: the devices' secrets would cross the network in clear: give https, or --plain to mean it"
        )
    return found


def trust(certificate: Path | None) -> ssl.SSLContext:
    """Return whom to believe that it is the server: that certificate's holder, or the public authorities. Raises CliError."""
    if certificate is None:
        return httpx.create_ssl_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the name, too
    try:
        data = certificate.read_bytes()
        context.load_verify_locations(cadata=data.decode("ascii") if data.startswith(b"-----") else data)
    except (OSError, ValueError) as error:
        raise CliError(f"{certificate}: no certificate, expected PEM or DER: {error}") from None
    return context


class Relay:
    """One server. Whatever goes wrong with it is an answer, which a device takes for none. Use it as a context."""

    def __init__(self, server: httpx.URL, context: ssl.SSLContext, server_name: str | None) -> None:
        self._extensions = {"sni_hostname": server_name} if server_name else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        # No proxy of the environment: what stands there is meant for other programs.
        self._client = httpx.AsyncClient(base_url=server, verify=context, limits=limits, trust_env=False)

    async def __aenter__(self) -> Relay:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    async def ask(self, question: Question) -> Answer:
        """Return what the server says, at most `question.room` bytes of it; 504 with a few words if it cannot be asked."""
        method, path = "POST", "/v1/enrol"
        if question.what is What.STATUS:
            path = f"/v1/dfu?ct={question.number}"
        elif question.what is What.CHUNK:
            method, path = "GET", f"/v1/dfu/{question.message.hex()}/{question.number}"
        headers = {"accept-encoding": "identity"}
        if question.login:
            headers["authorization"] = "Basic " + base64.b64encode(question.login.encode()).decode()
        wait_s = question.number if question.what is What.STATUS else 0
        request = self._client.build_request(
            method,
            path,
            headers=headers,
            content=b"" if method == "GET" else question.message,
            timeout=httpx.Timeout(wait_s + ANSWER_S, connect=CONNECT_S, pool=None),
            extensions=self._extensions,
        )
        try:
            return await self._asked(request, question)
        except (httpx.HTTPError, OSError) as error:
            return Answer(NO_ANSWER, words(error))

    async def _asked(self, request: httpx.Request, question: Question) -> Answer:
        answer = await self._client.send(request, stream=True)
        try:
            body = b""
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > question.room:
                    return Answer(NO_ANSWER, f"an answer of more than {question.room} bytes".encode())
        finally:
            await answer.aclose()
        status = answer.status_code
        if status == NO_ANSWER:
            status = 503  # the number is the bridge's own
        if question.what is What.STATUS and status == 200 and answer.headers.get("command") != "dfu":
            return Answer(NO_ANSWER, b"what answers is no dfud: is it the port for devices?")
        return Answer(status, body if status == 200 else _seconds(answer) if status != 202 else b"")


def _seconds(answer: httpx.Response) -> bytes:
    """Return how long the server wants to be left alone, as decimal digits, b"" if it does not say so in seconds."""
    text = str(answer.headers.get("retry-after", ""))
    return text.encode() if text.isascii() and text.isdigit() and len(text) <= SECONDS_DIGITS else b""


def words(error: BaseException) -> bytes:
    """Return an error in a few ASCII characters: what lies deepest is what happened."""
    text, at = type(error).__name__, error
    for _ in range(9):
        text = str(at) or text
        if (cause := at.__cause__ or at.__context__) is None:
            break
        at = cause
    return text.encode("ascii", "replace")[:WORDS_MAX]


def reason(answer: Answer) -> str:
    """Return why there is no answer, for people."""
    return click.unstyle(answer.body.decode("ascii", "replace"))
