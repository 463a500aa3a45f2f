"""Finding plugins and holding them to their promise. Every breach is an error at start that names the plugin."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import inspect
from collections.abc import Iterable
from typing import Any

import pluggy

from dfud.api import (
    BlobPlace,
    Config,
    DfudError,
    Dialect,
    EventSink,
    Hooks,
    PluginError,
    Section,
    Store,
    Transport,
    UserRoutes,
)
from dfud.api.plugins import PROJECT
from dfud.daemon.config import ConfigErrors

_HOOKS = {name: value for name, value in vars(Hooks).items() if name.startswith("dfud_")}


class Plugin:
    """One plugin that could be loaded: the entry point, and whose it is."""

    def __init__(self, entry: importlib.metadata.EntryPoint) -> None:
        self.name = entry.name
        self.where = entry.value
        self.entry = entry

    @property
    def distribution(self) -> str:
        """Read from the package's metadata when it is asked for: there are large ones."""
        return f"{self.entry.dist.name} {self.entry.dist.version}" if self.entry.dist else "unknown"


def available() -> dict[str, Plugin]:
    """Return every installed plugin by name; raise PluginError if two packages use one name."""
    found: dict[str, Plugin] = {}
    for entry in importlib.metadata.entry_points(group=PROJECT):
        plugin = Plugin(entry)
        other = found.setdefault(plugin.name, plugin)
        if other.where != plugin.where:
            raise PluginError(
                f"plugin {plugin.name}: {plugin.distribution} and {other.distribution} both offer it, expected one"
            )
    return found


class UnknownPlugin(PluginError):
    """close: the installed plugin that may have been meant, or ""."""

    def __init__(self, message: str, close: str) -> None:
        super().__init__(message)
        self.close = close


class Plugins:
    """The loaded plugins, and their hooks' results, checked."""

    def __init__(self, names: Iterable[str]) -> None:
        """Load `names`. Raises PluginError for an unknown plugin or a broken one."""
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        for name in names:
            self.load(name)

    @functools.cached_property
    def _known(self) -> dict[str, Plugin]:
        return available()

    def load(self, name: str) -> None:
        """Load one more. Raises PluginError as above."""
        known = self._known
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted(known))}"
            raise UnknownPlugin(
                f"[plugins] enabled: plugin {name!r} is not installed, {hint}", close[0] if close else ""
            )
        if self._manager.has_plugin(name):
            raise PluginError(f"[plugins] enabled: plugin {name!r} stands there twice")
        try:
            module = known[name].entry.load()
        except Exception as error:
            raise PluginError(f"plugin {name} ({known[name].where}) cannot be loaded: {error!r}") from error
        self.add(name, module)

    def add(self, name: str, module: Any) -> None:
        """Register a module (or object) of hook implementations. Raises PluginError."""
        for attribute, value in inspect.getmembers(module, callable):
            if not attribute.startswith("dfud_"):
                continue
            where = f"plugin {name}: hook {attribute}"
            if attribute not in _HOOKS:
                close = difflib.get_close_matches(attribute, _HOOKS, 1, 0.5)
                hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted(_HOOKS))}"
                raise PluginError(f"{where} is unknown, {hint}")
            if not hasattr(value, f"{PROJECT}_impl"):
                raise PluginError(f"{where} lacks @hookimpl, expected it above the def")
            if inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value):
                raise PluginError(
                    f"{where} is an async def, expected a def: hooks return objects, their methods do the I/O"
                )
        try:
            self._manager.register(module, name)
        except pluggy.PluginValidationError as error:
            raise PluginError(f"plugin {name}: {str(error).splitlines()[-1]}") from error
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(
                f"plugin {name}: {str(error).splitlines()[0]}, expected a name that dfud knows"
            ) from error

    def _call(self, hook: str, kind: type[Any], **arguments: Any) -> list[Any]:
        """Return what all plugins return. Raises PluginError, or ConfigErrors with what each of them finds wrong."""
        found: list[Any] = []
        problems: list[DfudError] = []
        # pluggy calls the last registered first; the order of the configuration is what a user expects.
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            where = f"plugin {implementation.plugin_name}: hook {hook}"
            try:
                result = implementation.function(*(arguments[name] for name in implementation.argnames))
                items = [] if result is None else list(result)
            except DfudError as error:
                problems.append(error)
                continue
            except Exception as error:
                raise PluginError(f"{where} failed or returned no iterable: {error!r}") from error
            for item in items:
                if not isinstance(item, kind):
                    raise PluginError(f"{where} returned {type(item).__name__}, expected {kind.__name__}")
                found.append(item)
        if len(problems) > 1:
            raise ConfigErrors(list(map(str, problems)))
        if problems:
            raise problems[0]
        return found

    def has(self, name: str) -> bool:
        """Say whether a plugin is loaded."""
        return bool(self._manager.has_plugin(name))

    def sections(self) -> list[Section]:
        return self._call("dfud_config_sections", Section)

    def store(self, config: Config, name: str) -> Store:
        """Return the store called `name`, new with each call; raise PluginError that lists what there is."""
        stores: dict[str, Store] = {store.name: store for store in self._call("dfud_stores", Store, config=config)}
        if name not in stores:
            raise PluginError(
                f"[daemon] store {name!r} is offered by no enabled plugin, expected one of {', '.join(sorted(stores)) or 'none'}"
            )
        for store in stores.values():
            if store.blobs:
                store.keep_blobs_in(self._place(config, store))
        store = stores[name]
        if store.records:
            if store.records not in stores or store.records == name:
                raise PluginError(
                    f"store {name} keeps records in store {store.records!r}, which is offered by no enabled plugin, "
                    f"expected one of {', '.join(sorted(set(stores) - {name})) or 'none'}"
                )
            store.keep_in(stores[store.records])
        return store

    def _place(self, config: Config, store: Store) -> BlobPlace:
        places: dict[str, BlobPlace] = {p.name: p for p in self._call("dfud_blob_places", BlobPlace, config=config)}
        if store.blobs not in places:
            raise PluginError(
                f"store {store.name} keeps its images in {store.blobs!r}, which is offered by no enabled plugin, "
                f"expected one of {', '.join(sorted(places)) or 'none'}"
            )
        return places[store.blobs]

    def transports(self, config: Config) -> list[Transport]:
        return self._call("dfud_transports", Transport, config=config)

    def dialects(self, config: Config) -> list[Dialect]:
        return self._call("dfud_dialects", Dialect, config=config)

    def event_sinks(self, config: Config) -> list[EventSink]:
        return self._call("dfud_event_sinks", EventSink, config=config)

    def user_routes(self, config: Config) -> list[UserRoutes]:
        return self._call("dfud_user_routes", UserRoutes, config=config)
