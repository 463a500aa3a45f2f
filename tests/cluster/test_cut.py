"""Who leads when the network is cut without a word."""

from __future__ import annotations

import re
import subprocess

import pytest
import trio

from tests import warm
from tests.real_parts import require


async def test_a_leader_that_is_cut_off_stops_before_another_leads() -> None:
    for part in ("ip", "unshare"):
        require(part)
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network of its own can be had here")
    command = ["unshare", "--net", *warm.module("tests.cluster.cut")]
    with trio.fail_after(280):
        run = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    told = run.stdout.decode()
    found = re.fullmatch(r"stopped (\d+\.\d+) led (\d+\.\d+)\n", told)
    assert found is not None, told + run.stderr.decode()
    assert float(found[1]) < float(found[2]), told
