"""An OpenID Connect issuer on the loopback: discovery, keys, and tokens signed with them. Keeps what it was asked."""

from __future__ import annotations

import json
import warnings
from typing import Any

import trio
from joserfc import jwk, jwt

AUDIENCE = "dfud"
NOW_S = 1_800_000_000


class Issuer:
    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.keys: dict[str, Any] = {}
        self.extra_keys: list[dict[str, Any]] = []
        self.answers: dict[str, tuple[int, bytes]] = {}  # instead of the right ones
        self.more_headers = ""  # whole lines
        self.add_key("first")

    def add_key(self, kid: str, kind: str = "EC") -> None:
        made: Any
        match kind:
            case "EC":
                made = jwk.ECKey.generate_key("P-256")
            case "RSA":
                made = jwk.RSAKey.generate_key(2048)
            case _:
                made = jwk.OKPKey.generate_key("Ed25519")
        self.keys[kid] = made

    def public(self) -> list[dict[str, Any]]:
        return [{**k.as_dict(private=False), "kid": kid, "use": "sig"} for kid, k in self.keys.items()] + self.extra_keys

    def claims(self, **changes: Any) -> dict[str, Any]:
        found = {"iss": self.url, "aud": AUDIENCE, "sub": "eve", "iat": NOW_S, "exp": NOW_S + 300, "roles": ["ops"]}
        return {k: v for k, v in {**found, **changes}.items() if v is not None}

    def token(self, kid: str = "first", alg: str = "ES256", key: Any = None, header: Any = None, **changes: Any) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            key = key if key is not None else self.keys[kid]
            head = header if header is not None else {"alg": alg, "kid": kid}
            return str(jwt.encode(head, self.claims(**changes), key, algorithms=[alg]))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = await stream.receive_some(4096)
            if not piece:
                return
            data += piece
        path = data.split(b" ")[1].decode()
        self.asked.append(path)
        documents: dict[str, Any] = {
            "/.well-known/openid-configuration": {"issuer": self.url, "jwks_uri": self.url + "/keys"},
            "/keys": {"keys": self.public()},
        }
        status, body = self.answers.get(path) or (200, json.dumps(documents.get(path)).encode())
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\nconnection: close\r\nlocation: {self.url}/keys\r\n"
        head += f"{self.more_headers}\r\n"
        try:
            await stream.send_all(head.encode() + body)
        except trio.BrokenResourceError:
            pass
