"""The model itself: what it does not know, being killed, what it can be told to do, and that nothing gets it down."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins.hawkbit.contract.conftest import RECORDED
from tests.plugins.hawkbit.model import ddi, mgmt
from tests.plugins.hawkbit.model.entities import Problem
from tests.plugins.hawkbit.model.query import compile_query
from tests.plugins.hawkbit.model.routes import Response
from tests.plugins.hawkbit.model.server import HawkbitModel
from tests.plugins.hawkbit.server import ModelHawkbit


@pytest.fixture
def model() -> Iterator[ModelHawkbit]:
    found = ModelHawkbit()
    found.start()
    yield found
    found.stop()


def test_it_has_no_route_that_no_recording_covers() -> None:
    seen = set()
    for path in RECORDED.glob("*.json"):
        for exchange in json.loads(path.read_text())["exchanges"]:
            request = exchange["request"]
            way = re.sub(r"\{\w+:(\d+)\}", r"\1", request["path"])
            routes = mgmt.ROUTES if request["api"] == "mgmt" else ddi.ROUTES
            seen.add((request["api"], routes.find(request["method"], way)[0]))
    known = {("mgmt", handler) for handler in mgmt.ROUTES.handlers()} | {("ddi", h) for h in ddi.ROUTES.handlers()}
    assert not [f"{api}: {handler.__name__}" for api, handler in known - seen]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/targettypes", None),
        ("GET", "/targets?tag=x", None),
        ("POST", "/targets", [{"controllerId": "x", "noSuchKey": 1}]),
        ("GET", "/targets?sort=description:ASC", None),
    ],
)
def test_what_it_does_not_know_is_answered_501_and_kept(
    model: ModelHawkbit, method: str, path: str, body: object
) -> None:
    assert model.model is not None
    answer = model.mgmt(method, path, body)
    assert answer.status_code == 501
    assert len(model.model.unknown) == 1 and path.partition("?")[0] in model.model.unknown[0]
    assert not model.model.errors


def test_killed_it_comes_back_on_its_port_with_its_state(model: ModelHawkbit) -> None:
    model.mgmt("POST", "/targets", [{"controllerId": "a"}])
    with httpx.Client(base_url=model.url, auth=(model.user, model.password), trust_env=False, timeout=60) as client:
        assert client.get("/rest/v1/targets/a").status_code == 200
        model.kill()
        with pytest.raises(httpx.TransportError):
            client.get("/rest/v1/targets/a")
        model.restart()
        assert client.get("/rest/v1/targets/a").status_code == 200


def test_it_can_lose_an_answer_be_away_and_limit_requests(model: ModelHawkbit) -> None:
    assert model.model is not None
    model.model.fail_next("POST", "/targets", carried_out=True)
    with pytest.raises(httpx.TransportError):
        model.mgmt("POST", "/targets", [{"controllerId": "a"}])
    assert model.mgmt("GET", "/targets/a").status_code == 200
    model.model.fail_next("GET", "/targets", Response(503), times=2)
    assert [model.mgmt("GET", "/targets/a").status_code for _ in range(3)] == [503, 503, 200]
    model.model.outage = 502
    assert model.ddi("GET", "a").status_code == 502
    model.model.outage = None
    model.model.limit_requests = 1
    assert model.ddi("GET", "a").status_code == 200
    limited = model.ddi("GET", "a")
    assert (limited.status_code, limited.content) == (429, b"")


def test_ten_thousand_targets_and_a_thousand_actions_are_listed(model: ModelHawkbit) -> None:
    for start in range(0, 10_000, 2_500):
        rows = [{"controllerId": f"d{n:05}"} for n in range(start, start + 2_500)]
        assert model.mgmt("POST", "/targets", rows).status_code == 201
    module = model.mgmt("POST", "/softwaremodules", [{"name": "f", "version": "1", "type": "os"}]).json()[0]["id"]
    row = {"name": "f", "version": "1", "type": "os", "modules": [{"id": module}]}
    ds = model.mgmt("POST", "/distributionsets", [row]).json()[0]["id"]
    model.mgmt("POST", f"/distributionsets/{ds}/assignedTargets", [{"id": f"d{n:05}"} for n in range(1000)])
    page = model.mgmt(
        "GET", "/actions?q=lastModifiedAt=ge=0&sort=id:ASC&limit=500&offset=500&representation=full"
    ).json()
    assert (page["total"], page["size"]) == (1000, 500)
    names = set()
    for offset in range(0, 10_000, 500):
        rows = model.mgmt("GET", f"/targets?sort=id:ASC&limit=500&offset={offset}").json()["content"]
        names |= {row["controllerId"] for row in rows}
    assert len(names) == 10_000
    too_many = [{"id": f"d{n:05}"} for n in range(5001)]
    assert model.mgmt("POST", f"/distributionsets/{ds}/assignedTargets", too_many).status_code == 429


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="id=gtin();,!<>'\"* .a1", max_size=30))
def test_no_query_gets_more_than_a_problem_out_of_it(text: str) -> None:
    with suppress(Problem):
        compile_query(text, {"id": lambda row: row, "a": lambda row: None})(7)


@pytest.fixture(scope="module")
def shared() -> Iterator[HawkbitModel]:
    """One model for every example."""
    found = ModelHawkbit()
    found.start()
    assert found.model is not None
    yield found.model
    found.stop()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=4))
def test_no_bytes_get_it_down(shared: HawkbitModel, pieces: list[bytes]) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), timeout=120) as peer:
        for piece in pieces:
            try:
                peer.sendall(piece)
            except OSError:
                break
    assert httpx.get(f"{shared.url}/rest/v1/targets", auth=("admin", "admin"), trust_env=False).status_code == 200
    assert not shared.errors
