"""Loading plugins: every breach of the promise is refused at start, by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dfud.api import Config, PluginError, Section, hookimpl
from dfud.daemon.plugins import Plugins, available


def plugin(**members: Any) -> SimpleNamespace:
    return SimpleNamespace(**members)


def test_the_built_in_plugins_are_found_by_their_entry_points() -> None:
    assert {"http", "local"} <= set(available())
    plugins = Plugins(["local", "http"])
    assert {"store.local", "transport.http"} <= {s.name for s in plugins.sections()}


@pytest.mark.parametrize(
    ("name", "message"),
    [("htpt", "did you mean http"), ("zzzzz", "expected one of .*http.*local")],
)
def test_an_unknown_plugin_is_refused(name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Plugins([name])


def test_a_plugin_is_named_once() -> None:
    with pytest.raises(PluginError, match="stands there twice"):
        Plugins(["local", "local"])


@hookimpl
def dfud_storse(config: Config) -> list[Any]:
    return []


@hookimpl
async def dfud_stores(config: Config) -> list[Any]:
    return []


def _unmarked(config: Config) -> list[Any]:
    return []


@hookimpl
def _extra_argument(config: Config, wishes: Any) -> list[Any]:
    return [wishes]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"dfud_storse": dfud_storse}, "plugin p: hook dfud_storse is unknown, did you mean dfud_stores?"),
        ({"dfud_stores": dfud_stores}, "plugin p: hook dfud_stores is an async def, expected a def"),
        ({"dfud_stores": _unmarked}, "plugin p: hook dfud_stores lacks @hookimpl"),
        ({"dfud_stores": _extra_argument}, "wishes"),
    ],
)
def test_a_broken_hook_is_refused(members: dict[str, Any], message: str) -> None:
    plugins = Plugins([])
    with pytest.raises(PluginError) as caught:
        plugins.add("p", plugin(**members))
    assert message in str(caught.value)


@hookimpl
def _returns_text(config: Config) -> list[Any]:
    return ["rubbish"]


@hookimpl
def _returns_number(config: Config) -> Any:
    return 7


@hookimpl
def _returns_nothing(config: Config) -> Any:
    return None


@hookimpl
def _section() -> list[Section]:
    return [Section("a", dict)]  # type: ignore[arg-type]  # only its name is looked at


def test_what_a_hook_returns_is_checked() -> None:
    config = Config({})
    for member, message in ((_returns_text, "returned str, expected Transport"), (_returns_number, "no iterable")):
        plugins = Plugins([])
        plugins.add("p", plugin(dfud_transports=member))
        with pytest.raises(PluginError, match=f"plugin p: hook dfud_transports .*{message}"):
            plugins.transports(config)
    plugins = Plugins([])
    plugins.add("p", plugin(dfud_transports=_returns_nothing, dfud_config_sections=_section))
    assert plugins.transports(config) == []
    assert [s.name for s in plugins.sections()] == ["a"]


def test_a_store_that_nobody_offers_is_refused() -> None:
    plugins = Plugins([])
    with pytest.raises(PluginError, match="store 'local' is offered by no enabled plugin"):
        plugins.store(Config({}), "local")
