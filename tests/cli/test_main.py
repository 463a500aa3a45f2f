"""dfuctl's commands are loaded as they are asked for."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from dfud.cli.main import COMMANDS, main


def test_every_command_is_where_it_is_said_to_be() -> None:
    context = click.Context(main)
    for name in (name for names in COMMANDS.values() for name in names):
        command = main.get_command(context, name)
        assert isinstance(command, click.Command) and command.name == name
        assert name in main.list_commands(context)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(["statsu", "lamp1"], " Did you mean 'status'?"), (["devices"], " Did you mean 'device'?"), (["xyzzy"], "")],
)
def test_a_command_that_is_mistyped_is_told_what_was_meant(typed: list[str], meant: str) -> None:
    found = CliRunner().invoke(main, typed)
    assert found.exit_code == 2 and found.output.rstrip().endswith(f"No such command '{typed[0]}'.{meant}")


def test_a_command_loads_nothing_that_only_others_need() -> None:
    code = "import sys; from dfud.cli.main import main; main(['status', '--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "dfud.cli.updates" in loaded, "the test sees what is loaded"
    assert not {"numpy", "dfud.package.build", "dfud.cli.board"} & loaded
