"""Bearer tokens of an issuer, which runs here: which are taken, which are not, and how its keys are fetched."""

from __future__ import annotations

import base64
import gzip
import json
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jwk

from dfud.api import ConfigError, StoreError
from dfud.registry.oidc import FETCH_AGAIN_S, Oidc, OidcConfig
from dfud.registry.users import User
from dfud.testing.daemon import DaemonProcess
from tests.registry.issuer import AUDIENCE, NOW_S, Issuer

ROLES = ["ops:a=manager", "ops:b=reader", "chief:*=admin", "urn:x:y:a=reader"]


class Judge:
    def __init__(self, issuer: Issuer, **config: Any) -> None:
        self.issuer = issuer
        self.now_s = float(NOW_S)
        fields = {"issuer": issuer.url, "audience": AUDIENCE, "roles": ROLES, **config}
        self.oidc = Oidc(OidcConfig(**fields), lambda: self.now_s)

    async def __call__(self, token: str) -> User | None:
        return await self.oidc.user(token)


@pytest.fixture
async def issuer(nursery: trio.Nursery) -> AsyncIterator[Issuer]:
    found = Issuer()
    await nursery.start(found.run)
    yield found
    nursery.cancel_scope.cancel()


async def test_a_token_of_the_issuer_speaks_for_its_user_with_the_roles_of_the_configuration(issuer: Issuer) -> None:
    judge = Judge(issuer)
    found = await judge(issuer.token())
    assert found == User("oidc:eve", {"a": "manager", "b": "reader"})
    assert await judge(issuer.token(roles="chief")) == User("oidc:eve", {"*": "admin"})
    assert await judge(issuer.token(roles=["urn:x:y", "ops"])) == User("oidc:eve", {"a": "manager", "b": "reader"})
    assert await judge(issuer.token(aud=["other", AUDIENCE])) is not None
    assert len(issuer.asked) == 2, "discovery and keys, once"


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize(("kind", "alg"), [("RSA", "RS256"), ("OKP", "Ed25519"), ("OKP", "EdDSA")])
async def test_other_algorithms_that_are_allowed(issuer: Issuer, kind: str, alg: str) -> None:
    issuer.add_key("k", kind)
    assert await Judge(issuer)(issuer.token("k", alg)) is not None
    assert await Judge(issuer, algorithms=["ES256"])(issuer.token("k", alg)) is None, "not in the list"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://elsewhere.example"},
        {"iss": None},
        {"aud": "another service"},
        {"aud": []},
        {"aud": None},
        {"exp": NOW_S - 31},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": 10**400},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"nbf": NOW_S + 31},
        {"iat": NOW_S + 3000},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x\ny"},
        {"sub": "x" * 201},
        {"roles": []},
        {"roles": ["nobody"]},
        {"roles": {"ops": True}},
        {"roles": None},
    ],
)
async def test_a_token_that_is_not_meant_for_us_or_now_is_nobodys(issuer: Issuer, changes: dict[str, Any]) -> None:
    judge = Judge(issuer)
    assert await judge(issuer.token()) is not None
    assert await judge(issuer.token(**changes)) is None


async def test_a_token_is_verified_once_and_known_until_its_end_or_its_keys(issuer: Issuer) -> None:
    judge = Judge(issuer, keys_s=30.0, leeway_s=0.0)
    token = issuer.token()
    assert judge.oidc.known(token) is None, "nobody is known by what he says"
    user = await judge(token)
    assert judge.oidc.known(token) == user is not None
    assert judge.oidc.known(token[:-2]) is None
    judge.now_s += 29
    assert judge.oidc.known(token) == user
    judge.now_s += 1
    assert judge.oidc.known(token) is None, "its keys are to be fetched first"
    issuer.keys.clear()
    issuer.add_key("second")
    assert await judge(token) is None
    assert judge.oidc.known(token) is None
    last = issuer.token("second", exp=NOW_S + 60)
    assert await judge(last) is not None
    judge.now_s = NOW_S + 60.0
    assert judge.oidc.known(last) is None
    assert await judge(last) is None


async def test_keys_that_are_taken_back_while_a_token_is_judged_end_it(issuer: Issuer) -> None:
    judge = Judge(issuer)
    token = issuer.token()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(judge, token)
        nursery.start_soon(judge, issuer.token(header={"alg": "ES256", "kid": "unknown"}))
    assert await judge(token) is not None


async def test_a_small_answer_that_would_be_a_large_one_is_refused(issuer: Issuer) -> None:
    """A gigabyte of zeros is a megabyte of gzip."""
    judge = Judge(issuer)
    assert await judge(issuer.token()) is not None
    issuer.more_headers = "content-encoding: gzip\r\n"
    issuer.answers["/keys"] = (200, gzip.compress(bytes(150 << 20)))
    judge.now_s += 3600
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert await judge(issuer.token(exp=NOW_S + 9000)) is not None, "the old keys are good for a while"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10
    assert len(issuer.asked) > 2


async def test_a_clock_that_is_set_back_does_not_stop_fetching(issuer: Issuer) -> None:
    judge = Judge(issuer)
    judge.now_s += 300 * 86400
    assert await judge(issuer.token(exp=NOW_S + 301 * 86400)) is not None
    judge.now_s = float(NOW_S)
    asked = len(issuer.asked)
    issuer.add_key("new")
    assert await judge(issuer.token("new")) is not None
    assert len(issuer.asked) == asked + 2


async def test_a_forged_token_is_nobodys(issuer: Issuer) -> None:
    judge = Judge(issuer)
    stranger = jwk.ECKey.generate_key("P-256")
    good = issuer.token()
    head, body, signature = good.split(".")

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    public = json.dumps(issuer.public()[0]).encode()
    forged = [
        issuer.token(key=stranger),
        f"{head}.{part(issuer.claims(roles=['chief']))}.{signature}",
        f"{part({'alg': 'none', 'kid': 'first'})}.{body}.",
        f"{part({'alg': 'none'})}.{body}.{signature}",
        issuer.token(key=jwk.OctKey.import_key(public), alg="HS256"),
        issuer.token(key=stranger, header={"alg": "ES256", "kid": "first", "jwk": stranger.as_dict(private=False)}),
        issuer.token(key=stranger, header={"alg": "ES256", "jku": issuer.url + "/mine", "kid": "first"}),
        issuer.token(header={"alg": "ES256", "kid": "unknown"}),
        f"{head}.{body}.",
        good + "A",
        good[:-4] + "AAAA",
        "..",
        "x" * 9000,
    ]
    for token in forged:
        assert await judge(token) is None, token[:100]
    assert "/mine" not in issuer.asked, "a token does not say where its key is"
    assert await judge(good) is not None


async def test_roles_may_stand_deep_in_the_token(issuer: Issuer) -> None:
    judge = Judge(issuer, roles_claim="realm_access.roles", user_claim="preferred_username")
    found = await judge(issuer.token(realm_access={"roles": ["ops"]}, preferred_username="eve@x"))
    assert found is not None and found.name == "oidc:eve@x"
    assert await judge(issuer.token(realm_access="ops", preferred_username="eve")) is None


async def test_a_new_key_is_fetched_when_it_is_first_seen_and_not_too_often(issuer: Issuer) -> None:
    judge = Judge(issuer)
    assert await judge(issuer.token()) is not None
    issuer.add_key("second")
    issuer.keys.pop("first")
    assert await judge(issuer.token("second")) is None, "asked a moment ago"
    asked = len(issuer.asked)
    judge.now_s += FETCH_AGAIN_S
    for _ in range(5):
        assert await judge(issuer.token("second")) is not None
    assert len(issuer.asked) == asked + 2
    for number in range(50):
        assert await judge(issuer.token("second", header={"alg": "ES256", "kid": f"made up {number}"})) is None
    assert len(issuer.asked) == asked + 2, "a stranger's key names cost the issuer nothing"


async def test_a_key_that_the_issuer_took_back_ends_with_the_keys_life(issuer: Issuer) -> None:
    judge = Judge(issuer, keys_s=3600)
    token = issuer.token(exp=NOW_S + 100_000)
    assert await judge(token) is not None
    issuer.add_key("second")
    issuer.keys.pop("first")
    assert await judge(token) is not None
    judge.now_s += 3600
    assert await judge(token) is None


async def test_an_issuer_that_is_away_is_waited_for_and_not_for_ever(issuer: Issuer) -> None:
    judge = Judge(issuer, keys_s=3600)
    token = issuer.token(exp=NOW_S + 100_000)
    assert await judge(token) is not None
    issuer.answers["/keys"] = (500, b"")
    judge.now_s += 3600
    assert await judge(token) is not None, "its keys are still good for a while"
    judge.now_s += 3600
    with pytest.raises(StoreError, match="issuer of the tokens cannot be reached"):
        await judge(token)
    issuer.answers.clear()
    judge.now_s += FETCH_AGAIN_S
    assert await judge(token) is not None


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/.well-known/openid-configuration", (200, b'{"issuer": "http://127.0.0.1:1", "jwks_uri": "http://127.0.0.1:1/"}')),
        ("/.well-known/openid-configuration", (302, b"")),
        ("/.well-known/openid-configuration", (200, b"[" * 5000)),
        ("/keys", (200, b"not json")),
        ("/keys", (200, b"[]")),
        ("/keys", (200, b" " * (1 << 19))),
        ("/keys", (404, b"{}")),
    ],
)
async def test_an_issuer_that_answers_otherwise_gives_nobody_access(issuer: Issuer, path: str, answer: tuple[int, bytes]) -> None:
    issuer.answers[path] = answer
    with pytest.raises(StoreError):
        await Judge(issuer)(issuer.token())


async def test_keys_that_are_none_are_left_out_and_the_others_used(issuer: Issuer) -> None:
    secret = jwk.OctKey.import_key(b"a secret that everybody can read")
    issuer.extra_keys = [
        {**secret.as_dict(), "kid": "oct"},
        {"kty": "EC", "crv": "P-256", "kid": "broken", "x": "!!", "y": 7},
        {**jwk.ECKey.generate_key("P-256").as_dict(private=True), "kid": "private"},
        7,  # type: ignore[list-item]  # wrong on purpose
    ]
    judge = Judge(issuer, algorithms=["ES256"])
    assert await judge(issuer.token()) is not None
    assert await judge(issuer.token("oct", "HS256", key=secret)) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"issuer": "http://login.example"}, "expected an https URL"),
        ({"issuer": "login.example"}, "expected an https URL"),
        ({"audience": ""}, "audience is missing"),
        ({"algorithms": ["none"]}, "algorithms 'none'"),
        ({"algorithms": ["HS256"]}, "algorithms 'HS256'"),
        ({"roles": ["ops"]}, "roles 'ops'"),
        ({"roles": ["ops:a=owner"]}, "roles 'ops:a=owner'"),
    ],
)
def test_a_configuration_that_would_let_anybody_in_is_refused(config: dict[str, Any], message: str) -> None:
    fields = {"issuer": "https://login.example", "audience": AUDIENCE, "roles": ROLES, **config}
    with pytest.raises(ConfigError, match=r"\[oidc\] .*" + message):
        Oidc(OidcConfig(**fields), time.time)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.text(max_size=60), st.binary(max_size=40), st.binary(max_size=40))
async def test_no_token_raises(head: str, body: bytes, signature: bytes) -> None:
    oidc = Oidc(OidcConfig(issuer="https://login.example", audience=AUDIENCE), lambda: NOW_S)
    encoded = [base64.urlsafe_b64encode(x).decode() for x in (head.encode("utf-8", "replace"), body, signature)]
    for token in (head, ".".join(encoded), f"eyJhbGciOiJub25lIn0.{encoded[1]}."):
        assert await oidc.user(token) is None


async def test_the_registry_takes_them_beside_access_tokens(issuer: Issuer, nursery: trio.Nursery, tmp_path: Path) -> None:
    section = f'[oidc]\nissuer = "{issuer.url}"\naudience = "{AUDIENCE}"\nroles = {json.dumps(ROLES)}\n'
    daemon = DaemonProcess(tmp_path / "dfud", extra=section)
    await daemon.init()
    await nursery.start(daemon.run)
    token = issuer.token(exp=int(time.time()) + 600, iat=int(time.time()))
    async with daemon.client() as admin, httpx.AsyncClient(base_url=daemon.urls["registry"], timeout=60) as eve:
        for name in ("a", "b"):
            assert (await admin.post("/api/registry/v1alpha1/apps", json={"metadata": {"name": name}})).is_success
        headers = {"authorization": f"Bearer {token}"}
        assert (await eve.get("/api/dfu/v1/whoami", headers=headers)).json()["user"] == "oidc:eve"
        devices = "/api/registry/v1alpha1/apps/{}/devices"
        body = {"metadata": {"name": "d"}}
        assert (await eve.post(devices.format("a"), json=body, headers=headers)).status_code == 201
        assert (await eve.post(devices.format("b"), json=body, headers=headers)).status_code == 403
        refused = await eve.post("/api/tokens/v1alpha1", headers=headers)
        assert (refused.status_code, refused.json()["error"]) == (403, "Forbidden")
        wrong = await eve.get("/api/dfu/v1/whoami", headers={"authorization": f"Bearer {token[:-4]}AAAA"})
        assert (wrong.status_code, wrong.json()["message"]) == (403, "Authentication failed")
        basic = base64.b64encode(f"admin:{token}".encode()).decode()
        assert (await eve.get("/api/dfu/v1/whoami", headers={"authorization": f"Basic {basic}"})).status_code == 403
        entries = (await admin.get("/api/dfu/v1/audit")).json()
        assert ("oidc:eve", "create", "a/d") in [(e["by"], e["what"], e["target"]) for e in entries]
    assert token not in json.dumps(daemon.lines)
