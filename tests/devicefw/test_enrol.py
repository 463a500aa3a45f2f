"""devicefw/dfu/enrol.py on real MicroPython, with NVS that fails for a moment."""

from __future__ import annotations

import pytest

from tests.devicefw.test_link import run
from tests.devicefw.test_starts import BOARD

PROGRAM = (
    BOARD
    + """
import asyncio
from dfu import enrol
from dfu.errors import TransportError
enrol.print = lambda *text: None
class Machine: pass
machine = Machine()
machine.unique_id = lambda: b"board"
sys.modules["machine"] = machine
class Away:
    "NVS that cannot be opened so many times, then can."
    left = 0
    def __new__(cls, name):
        if Away.left:
            Away.left -= 1
            raise OSError(-0x101)
        return NVS(name)
esp.NVS = Away
shown = []
class Transport:
    async def enrol(self, message, buffer): shown.append(bytes(message))
def start(tries=2):
    found = enrol.Enrolment({"app": "a", "claim": "dfc_abcdef_0000"})
    for _ in range(tries):
        try:
            asyncio.run(found.present(Transport(), bytearray(64)))
        except TransportError:
            pass
    return found.config["secret"].encode() == NVS.kept.get("secret")
"""
)


@pytest.mark.parametrize("times", range(1, 6))
def test_a_secret_that_could_not_be_read_for_a_moment_is_not_written_over(times: int) -> None:
    found = run(
        PROGRAM
        + f"""
start()
before, told = NVS.kept["secret"], len(shown)
Away.left = {times}
start()
print(json.dumps([NVS.kept["secret"] == before, all(before in one for one in shown[told:]), start()]))
"""
    )
    assert found == [[True, True, True]]


def test_where_there_is_none_yet_it_is_kept_once_that_can_be_done() -> None:
    assert run(PROGRAM + "Away.left = 4\nprint(json.dumps([start(), len(shown)]))\n") == [[True, 1]]


def test_one_that_was_set_and_not_committed_is_committed_later() -> None:
    assert run(
        PROGRAM
        + """
def full(self): raise OSError(-0x1105)
commits, NVS.commit = [], full
before = start()
NVS.commit = lambda self: commits.append(1)
found = enrol.Enrolment({"app": "a", "claim": "dfc_abcdef_0000"})
print(json.dumps([len(shown), before]))
NVS.kept.clear()
NVS.commit = full
found = enrol.Enrolment({"app": "a", "claim": "dfc_abcdef_0000"})
NVS.commit = lambda self: commits.append(1)
asyncio.run(found.present(Transport(), bytearray(64)))
print(json.dumps([len(shown), len(commits)]))
"""
    ) == [[0, True], [1, 2]]
