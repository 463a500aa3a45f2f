"""What a manager may send to the routes of rollouts, groups, recalls and forecasts: refused, and never a fault of dfud."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from tests.daemon.outside import OLD, outside

APP = "/api/dfu/v1/apps/good"
JSON = {"content-type": "application/json"}
FAR = "9999-12-31T23:59:59-23:59"
ODD_BODIES = (
    b"",
    b"null",
    b"[]",
    b"{",
    b"\xff\xfe",
    b"[" * 60_000,
    b'{"spec":' * 20_000,
    b'{"spec": {"firmware": "1.0", "x": 1e999}}',
    b'{"spec": {"firmware": "1.0", "perMinute": 1e308}}',
    b'{"metadata": {"name": "r"}, "spec": {"firmware": "1.0", "perMinute": ' + b"9" * 5000 + b"}}",
    b'{"metadata": {"name": "r"}, "spec": {"firmware": "1.0", "priority": 18446744073709551616}}',
    b'{"metadata": {"name": "r"}, "spec": {"firmware": "1.0", "devices": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001 + b"}",
    b'{"metadata": {"name": "r", "labels": {"a": "\\ud800"}}, "spec": {"firmware": "1.0"}}',
    b'{"reason": "\\ud800"}',
    b'{"reason": 1e999}',
    b'{"requires": {"from": 1e999}}',
    b'{"requires": {"from": ' + b"9" * 5000 + b"}}",
    b'{"requires": {"from": -1, "to": 18446744073709551616}}',
    b'{"requires": {"from": "\\u0000"}}',
    b'{"devices": [' + b"[" * 50_000,
    b'{"sink": "x", "ids": []}',
    b'{"selector": "a=b", "firmware": {"version": 1e999}}',
    b'{"selector": "a=b", "firmware": {"hold": true, "x": 18446744073709551616}}',
)
ROUTES = (
    ("POST", f"{APP}/rollouts"),
    ("POST", f"{APP}/rollouts:plan"),
    ("POST", f"{APP}/rollouts/none/pause"),
    ("POST", f"{APP}/firmware/1.0/recall"),
    ("PUT", f"{APP}/firmware/1.0/ways"),
    ("POST", f"{APP}/update"),
    ("POST", f"{APP}/jobs/1/cancel"),
    ("POST", "/api/registry/v1alpha1/apps/good/devices:batch"),
    ("POST", "/api/dfu/v1/outbox/dead/retry"),
    ("POST", "/api/dfu/v1/outbox/dead/drop"),
)
# Numbers of which the first digits are within the limit and the whole is not.
LARGE = ("0000010000000", "000000001" + "0" * 30, "000000000001" + "0" * 400, "1" + "0" * 5000, "\u00b2", "-1", "1e3")
NUMBERS = (
    ("GET", "/api/dfu/v1/audit", "limit"),
    ("GET", "/api/registry/v1alpha1/apps/good/devices", "limit"),
    ("GET", "/api/registry/v1alpha1/apps/good/devices", "offset"),
    ("GET", f"{APP}/fleet", "hours"),
    ("GET", f"{APP}/fleet", "points"),
    ("POST", f"{APP}/rollouts:plan", "silentDays"),
    ("POST", f"{APP}/firmware", "sequence"),
    ("POST", "/api/command/v1alpha1/apps/good/devices/h0?command=x", "expires"),
)
SELECTORS = ("a=" + "b" * 200, "a,b,c,d", " " * 200 + "a")


def with_selector(text: str) -> list[tuple[str, str, dict[str, Any]]]:
    rollout = {"firmware": "1.0", "devices": {"selector": text}}
    waves = {"firmware": "1.0", "waves": [{"selector": text}, {"percent": 100}]}
    rules = [{"selector": text, "firmware": {"version": "1.0"}}]
    return [
        ("POST", f"{APP}/rollouts", {"metadata": {"name": "r"}, "spec": rollout}),
        ("POST", f"{APP}/rollouts", {"metadata": {"name": "r"}, "spec": waves}),
        ("POST", f"{APP}/rollouts:plan", {"spec": rollout}),
        ("POST", f"{APP}/rollouts:plan", {"spec": waves}),
        ("POST", f"{APP}/update", {"selector": text, "firmware": {"hold": True}}),
        ("PUT", "/api/registry/v1alpha1/apps/good", {"metadata": {"name": "good"}, "spec": {"rules": rules}}),
    ]


async def test_odd_requests_are_refused_and_nothing_is_contained(tmp_path: Path) -> None:
    settings = {"registry": "selector_max_bytes = 100\nselector_max_terms = 3"}
    async with outside(tmp_path, settings) as (daemon, user):
        await daemon.publish(user, "good", ("1.0", OLD))
        wrong: list[str] = []

        async def refused(method: str, path: str, **given: Any) -> None:
            answer = await user.request(method, path, **given)
            if not 400 <= answer.status_code < 500:
                shown = {**given, "content": given.get("content", b"")[:70]}
                wrong.append(f"{method} {path} {shown}: {answer.status_code} {answer.text[:200]}")

        for method, path in ROUTES:
            for body in ODD_BODIES:
                # No body, or one that says nothing, is a recall or a cancellation without a reason; null takes conditions away.
                if body not in (b"", b"null"):
                    await refused(method, path, content=body, headers=JSON)
        for method, path, name in NUMBERS:
            for text in LARGE:
                plan = msgspec.json.encode({"spec": {"firmware": "1.0"}}) if path.endswith("plan") else b""
                await refused(method, f"{path}{'&' if '?' in path else '?'}{name}={text}", content=plan, headers=JSON)
        for text in SELECTORS:
            for method, path, given in with_selector(text):
                await refused(method, path, content=msgspec.json.encode(given), headers=JSON)
        for field in ("start", "end", "offerUntil"):
            spec = {"firmware": "1.0", "mode": "offer", field: FAR}
            await refused("POST", f"{APP}/rollouts:plan", content=msgspec.json.encode({"spec": spec}), headers=JSON)
        assert not wrong, "\n".join(wrong)
        windows = [{"days": ["sun"], "from": "02:00", "to": "03:00"}]
        late = {"firmware": "1.0", "start": "8999-12-31T23:59:59-23:59", "windows": windows, "timeZone": "America/New_York"}
        batch = b'{"devices": [[[[[[1]]]]], 1e9, null, {"metadata": {"name": "\\u0000", "application": "good"}}, {"spec": {}}]}'
        answer = await user.post("/api/registry/v1alpha1/apps/good/devices:batch", content=batch, headers=JSON)
        assert answer.status_code == 200 and answer.json()["refused"] == 5, answer.text
        answer = await user.post(f"{APP}/rollouts:plan", json={"spec": late})
        assert answer.status_code == 200, answer.text
        metrics = (await user.get("/metrics")).text
        assert not re.findall(r"^dfud_contained_errors_total.*", metrics, re.MULTILINE), metrics[-2000:]
        assert (await user.get("/readyz")).status_code == 200
