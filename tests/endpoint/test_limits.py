"""What strangers may cost: guesses are counted before they are judged, slow hashes wait for each other, denials are told."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import trio

import dfud.endpoint.auth as auth_module
from dfud.api import Code, Credentials, Reply
from dfud.endpoint.limits import Attempts, TooMany
from dfud.model.credentials import LIMITS, verify
from tests.endpoint.world import KEY, World, basic, start_world

LINES = 5
FAST = bcrypt.hashpw(b"pw", bcrypt.gensalt(4)).decode()


def slow_spec(hashed: str = FAST) -> dict[str, Any]:
    return {"authentication": {"credentials": [{"pass": {"bcrypt": hashed}}]}}


class Judge:
    """Stands in for verify(): counts, and waits in its thread until `go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.judged = self.at_once = self.most = 0
        self._lock = threading.Lock()
        monkeypatch.setattr(auth_module, "verify", self)

    def __call__(self, spec: Any, username: str | None, password: str, key: bytes, limits: object) -> bool:
        with self._lock:
            self.judged += 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.go.wait(30)
        with self._lock:
            self.at_once -= 1
        return password == "pw"


async def test_guesses_that_are_under_way_are_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.put("dev1", slow_spec())
    judge = Judge(monkeypatch)
    codes: list[Code] = []

    async def guess(number: int) -> None:
        codes.append(await world.code(basic(f"dev1@app1:{number}"), peer=f"10.0.{number}.1"))

    async with trio.open_nursery() as nursery:
        for number in range(114):
            nursery.start_soon(guess, number)
        await trio.testing.wait_all_tasks_blocked(0.05)
        judge.go.set()
    assert judge.judged == 5, "as many as may fail in a minute"
    assert judge.most <= 2, "slow_checks"
    assert sorted(codes) == [Code.DENIED] * 5 + [Code.TOO_MANY] * 109
    world.let_pass(61)
    assert await world.code(basic("dev1@app1:pw")) is Code.ACCEPTED


async def test_a_fleet_behind_one_address_logs_in_though_more_are_under_way_than_may_fail(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        await world.put(f"f{number}", slow_spec())
    Judge(monkeypatch).go.set()
    codes: list[Code] = []

    async def log_in(number: int) -> None:
        codes.append(await world.code(basic(f"f{number}@app1:pw"), peer="10.0.0.1"))

    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(log_in, number)
    assert codes == [Code.ACCEPTED] * 60


async def test_attempts_that_are_given_up_give_their_place_away() -> None:
    attempts = Attempts(1, trio.current_time, waiting_max=3, counted_max=100)
    await attempts.begin("a")
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.01):
            await attempts.begin("a")
        done = trio.Event()

        async def wait() -> None:
            await attempts.begin("a")
            done.set()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        attempts.end("a", failed=False)
        await done.wait()
    attempts.end("a", failed=True)
    with pytest.raises(TooMany):
        await attempts.begin("a")
    await attempts.begin("b")
    assert not attempts._waiting and list(attempts._judged) == ["b"]


async def test_of_those_who_wait_for_one_device_only_a_few_are_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them is a request under way, of which a transport has only so many for everybody."""
    await world.put("dev1", slow_spec())
    judge = Judge(monkeypatch)
    codes: list[Code] = []

    async def guess(number: int) -> None:
        codes.append(await world.code(basic(f"dev1@app1:{number}"), peer=f"10.0.{number}.1"))

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(guess, number)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert codes == [Code.TOO_MANY] * 190, "while the first five are still judged, and five wait"
        judge.go.set()


async def test_a_slow_check_does_not_hold_up_the_end(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await start_world(nursery, tmp_path)
    await world.put("dev1", slow_spec())
    judge = Judge(monkeypatch)
    try:
        async with trio.open_nursery() as requests:
            requests.start_soon(world.code, basic("dev1@app1:x"))
            while not judge.judged:
                await trio.sleep(0.002)
            requests.cancel_scope.cancel()
        assert judge.at_once == 1, "it still runs, and nobody waits for it"
    finally:
        judge.go.set()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "stored",
    [
        {"bcrypt": FAST.replace("$04$", "$31$")},
        {"bcrypt": FAST.replace("$04$", f"${LIMITS.bcrypt_cost + 1}$")},
        {"bcrypt": "$2b$99999999999$x"},
        {"bcrypt": ""},
        {"sha512": "$6$rounds=999999999$salt$x"},
    ],
)
def test_a_stored_form_that_asks_for_too_much_work_is_never_run(stored: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bcrypt, "checkpw", lambda *a: pytest.fail("it was run"))
    assert not verify({"authentication": {"credentials": [{"pass": stored}]}}, None, "pw", KEY)


def test_forms_beyond_what_one_guess_may_cost_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[bytes] = []

    def check(given: bytes, stored: bytes) -> bool:
        run.append(given)
        return False

    monkeypatch.setattr(bcrypt, "checkpw", check)
    many = {"authentication": {"credentials": [{"pass": {"bcrypt": FAST}}] * 50 + [{"pass": "plain"}] * LIMITS.forms}}
    assert not verify(many, None, "guess", KEY)
    assert len(run) == LIMITS.slow_forms
    assert verify(many, None, "plain", KEY), "those that cost nothing count on their own"


@pytest.mark.parametrize(
    ("credentials", "reason", "named"),
    [
        (Credentials(basic("dev1@app1:wrong")), "password", ("app1", "dev1")),
        (Credentials(basic("nobody@app1:pw")), "unknown", ("app1", "nobody")),
        (Credentials(basic("dev1@nothing:pw")), "unknown", ("nothing", "dev1")),
        (Credentials(basic("off@app1:pw")), "disabled", ("app1", "off")),
        (Credentials(b"Bearer hm"), "malformed", ("", "")),
        (Credentials(), "malformed", ("", "")),
        (Credentials(certificate=b"no DER"), "malformed", ("", "")),
        (Credentials(identity="gone@app1"), "unknown", ("app1", "gone")),
        (Credentials(basic("\x1b[31m\n" + "x" * 99 + "@app1:pw")), "unknown", ("app1", r"\x1b[31m\n" + "x" * 58 + "...")),
    ],
)
async def test_a_denied_device_leaves_a_line_and_a_count_and_never_its_secret(
    world: World, caplog: pytest.LogCaptureFixture, credentials: Credentials, reason: str, named: tuple[str, str]
) -> None:
    await world.put("off", {"core": {"disabled": True}, "authentication": {"credentials": [{"pass": "pw"}]}})
    with caplog.at_level(logging.WARNING, "dfud.endpoint"):
        found = await world.post(credentials, peer="10.0.0.9")
        await world.post(credentials, peer="10.0.0.9")
    assert isinstance(found, Reply) and found.code is Code.DENIED
    assert [(d.reason, d.app, d.device, d.peer) for d in world.denied] == [(reason, *named, "10.0.0.9")] * 2
    (record,) = [r for r in caplog.records if r.name == "dfud.endpoint"]
    assert (record.__dict__["reason"], record.__dict__["app"], record.__dict__["device"]) == (reason, *named)
    told = str(record.__dict__)
    assert "wrong" not in told and basic("dev1@app1:wrong").decode() not in told


async def test_strangers_cannot_fill_the_log_with_denials(
    nursery: trio.Nursery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = await start_world(nursery, tmp_path, failures_per_address=100_000, denials_logged=LINES)
    for number in range(LINES * 3):
        await world.code(basic(f"n{number}@app1:x"))
    assert len([r for r in caplog.records if r.message == "a device was denied"]) == LINES
    assert len(world.denied) == LINES * 3
    world.let_pass(61)
    await world.code(basic("later@app1:x"))
    assert caplog.records[-1].__dict__["unlogged_before"] == LINES * 2
    nursery.cancel_scope.cancel()


async def test_the_wall_clock_set_back_keeps_nothing_waiting(world: World) -> None:
    me = basic("dev1@app1:pw")
    for _ in range(6):
        await world.code(basic("dev1@app1:wrong"))
    assert await world.code(me) is Code.TOO_MANY
    assert await world.endpoint.commands.send("app1", "dev1", "", "old", b"")
    world.clock[0] -= 300 * 86400
    world.monotonic[0] += 61
    found = await world.post(Credentials(me))
    assert isinstance(found, Reply) and (found.code, found.command) == (Code.ACCEPTED, "")
