"""`-o json`: standard output is JSON whatever happens: an error, a wrong command line, nobody at the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dfud.cli.main import main

CONFIG = """current = "c"
[contexts.c]
url = "http://127.0.0.1:1"
token = "drg_000000_x"
app = "lamps"
"""


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(group, click.Group):
        ctx = click.Context(group)
        for name in group.list_commands(ctx):
            found = group.get_command(ctx, name)
            assert found is not None
            yield from commands(found, (*path, name))
    else:
        yield path, group


def words(command: click.Command, some_file: Path) -> list[str]:
    """Return a command line that is right as far as the command's parameters say."""
    out: list[str] = []
    for parameter in command.params:
        kind = parameter.type
        value = "1"
        if isinstance(kind, (click.Path, click.File)):
            value = str(some_file)
        elif isinstance(kind, click.Choice):
            value = str(kind.choices[0])
        if isinstance(parameter, click.Argument) and (parameter.required or parameter.nargs == -1):
            out += [value] * max(1, parameter.nargs)
        elif isinstance(parameter, click.Option) and parameter.required:
            out += [parameter.opts[-1], value]
        elif isinstance(parameter, click.Option) and "--yes" in parameter.opts:
            out.append("--yes")
    return out


ALL = {" ".join(path): command for path, command in commands(main)}


def run(path: Path, *arguments: str) -> tuple[int, str]:
    config = path / "config.toml"
    config.write_text(CONFIG)
    found = CliRunner().invoke(main, ["--config", str(config), "-o", "json", *arguments], env={"DFUCTL_OUTPUT": ""})
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stdout


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_prints_json_where_the_registry_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    some_file = tmp_path / "file"
    some_file.write_bytes(b"{}")
    monkeypatch.chdir(tmp_path)
    code, told = run(tmp_path, *name.split(), *words(ALL[name], some_file))
    found = json.loads(told)
    assert code == 0 or found["error"], told


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_prints_json_on_a_wrong_command_line(tmp_path: Path, name: str) -> None:
    code, told = run(tmp_path, *name.split(), "--no-such-option")
    assert code == 2 and "no-such-option" in json.loads(told)["error"]


def test_a_command_that_there_is_not_is_an_error_in_json(tmp_path: Path) -> None:
    code, told = run(tmp_path, "bogus")
    assert code == 2 and "bogus" in json.loads(told)["error"]


def test_a_question_that_nobody_answers_is_an_error_in_json(tmp_path: Path) -> None:
    code, told = run(tmp_path, "token", "delete", "drg_000000")
    assert code == 1 and "--yes" in json.loads(told)["error"]
