"""What hawkBit says: read or refused, and a row that is wrong costs that row."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
from dfud_hawkbit import answers
from dfud_hawkbit.config import HawkbitConfig
from dfud_hawkbit.firmware import Unusable, choose
from dfud_hawkbit.http import Away, Http
from hypothesis import given
from hypothesis import strategies as st

from dfud.api import PeerError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["_links", "href", "config", "polling", "sleep", "deployment", "chunks", "content", "id"])
            | st.text(max_size=8),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.binary(max_size=200) | JSON.map(msgspec.json.encode))
def test_whatever_hawkbit_sends_is_read_or_refused(body: bytes) -> None:
    """No decoder raises anything but PeerError, and what it gives can be used."""
    for decode in (
        answers.decode_offer_untrusted,
        answers.decode_order_untrusted,
        answers.decode_error_untrusted,
        lambda data: answers.decode_rows_untrusted(data, answers.Action, "rows"),
        lambda data: answers.decode_untrusted(data, list[answers.StoredArtifact], "artifacts"),
        lambda data: answers.decode_untrusted(data, answers.Assigned, "assignment"),
    ):
        try:
            found: Any = decode(body)
        except PeerError:
            continue
        if isinstance(found, answers.Order):
            with pytest.raises(Unusable):
                choose(found, HawkbitConfig())


def offer(**links: str) -> bytes:
    body = {"config": {"polling": {"sleep": "00:05:00"}}, "_links": {k: {"href": v} for k, v in links.items()}}
    return msgspec.json.encode(body)


def test_an_offer_says_what_hawkbit_wants_of_a_device() -> None:
    base = "http://h:1/DEFAULT/controller/v1/a:d"
    update = answers.decode_offer_untrusted(offer(deploymentBase=f"{base}/deploymentBase/7?c=-12", configData=base))
    assert update == answers.Offer("update", 7, "/deploymentBase/7?c=-12", 300.0, attributes=True)
    both = offer(deploymentBase=f"{base}/deploymentBase/8", cancelAction=f"{base}/cancelAction/7")
    assert answers.decode_offer_untrusted(both).kind == "cancel"
    assert answers.decode_offer_untrusted(offer(confirmationBase=f"{base}/confirmationBase/9?c=1")).kind == "confirm"
    assert answers.decode_offer_untrusted(offer(deploymentBase="http://elsewhere/x")).kind == ""


@pytest.mark.parametrize("href", ["http://[::1/deploymentBase/7", "//\u2100/deploymentBase/7", "http://[x]/deploymentBase/7"])
def test_an_address_that_is_none_leads_nowhere(href: str) -> None:
    assert answers.decode_offer_untrusted(offer(deploymentBase=href)) == answers.Offer(sleep_s=300.0)
    assert msgspec.convert({"id": 3, "_links": {"target": {"href": href}}}, answers.Action).target == ""
    with pytest.raises(Away, match="something else answers"):
        moved = httpx.Response(302, headers={b"location": href.encode()})
        Http(HawkbitConfig(), lambda: 0.0)._check("poll", "GET", moved, b"", ())


def test_a_row_names_its_target_by_address_and_not_by_name() -> None:
    row = {"id": 3, "active": True, "_links": {"target": {"href": "http://h/rest/v1/targets/a:d%2Bx", "name": "other"}}}
    assert msgspec.convert(row, answers.Action).target == "a:d+x"


def test_a_row_that_cannot_be_read_is_left_out_and_the_others_are_not() -> None:
    rows = [{"id": 1, "active": True}, {"id": "one"}, None, {"id": 4, "_links": 7}, {"id": 5}]
    found = answers.decode_rows_untrusted(msgspec.json.encode({"content": rows, "total": 9}), answers.Action, "rows")
    assert [row.id for row in found.rows] == [1, 5]
    assert (found.sent, found.total, len(found.unread)) == (5, 9, 3)
