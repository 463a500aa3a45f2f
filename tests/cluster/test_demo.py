"""`make demo-cluster`, with few boards; the balancers' configurations that it and the document have in common; and its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import psutil
import pytest
import trio

from tests import warm
from tests.cluster.balancer import KINDS
from tests.real_parts import require

PARTS = ("postgres", "versitygw", "micropython", "riscv-gcc", *KINDS)


def command(boards: int, *more: str) -> list[str]:
    for part in PARTS:
        require(part)
    return warm.module("tests.cluster.demo", "--boards", str(boards), *more)


async def whole(boards: int, *more: str) -> None:
    run = await trio.run_process(command(boards, *more), capture_stdout=True, capture_stderr=True, check=False)
    told = run.stdout.decode()
    assert run.returncode == 0, told + run.stderr.decode()
    assert re.search(r"kill -9 of dfud \d, which leads the rollout\ndfud \d leads it, ", told), told
    assert "is started again" in told and "PostgreSQL is restarted, while the others fetch\nit is down\nit is up\n" in told
    assert "good: 1.1, finished" in told
    assert f"Done: {boards} boards run 1.1." in told.splitlines()[-1]


async def test_a_few_boards_behind_both_balancers_arrive() -> None:
    with trio.fail_after(550):
        await whole(3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_fifty_boards_behind_one_balancer_arrive(kind: str) -> None:
    with trio.fail_after(1200):
        await whole(50, "--balancer", kind)


async def test_it_ends_clean_when_it_is_interrupted() -> None:
    process = await trio.lowlevel.open_process(command(2), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    told = b""
    with trio.fail_after(550):
        while b"haproxy: devices" not in told:
            told += await process.stdout.receive_some(4096)
            assert process.poll() is None, told
        started = psutil.Process(process.pid).children(recursive=True)
        names = {one.name() for one in started}
        os.kill(process.pid, signal.SIGINT)
        async with process.stdout, process.stderr:
            assert (await process.stderr.receive_some(4096)).startswith(b"interrupted"), told
        assert await process.wait() == 130
    assert {"postgres", "versitygw", "nginx", "haproxy"} <= names
    assert psutil.wait_procs(started, timeout=60)[1] == [], "processes that are left"
