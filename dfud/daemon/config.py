"""dfud.toml to one frozen Config. Every mistake is an error that says where, what was found and what was expected."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from dfud.api import Config, ConfigError, Secret, Section


class ConfigErrors(ConfigError):
    """Everything that is wrong with a configuration: `messages`, a sentence each."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = tuple(messages)


class DaemonConfig(msgspec.Struct, frozen=True):
    store: Annotated[str, msgspec.Meta(description="name of the store to use")] = "local"
    log_format: Annotated[
        str,
        msgspec.Meta(
            description="auto (journald under systemd, else json), json, journald or text",
            pattern="^(auto|json|journald|text)$",
        ),
    ] = "auto"
    log_level: Annotated[
        str, msgspec.Meta(description="debug, info, warning or error", pattern="^(debug|info|warning|error)$")
    ] = "info"
    log_per_minute: Annotated[
        int,
        msgspec.Meta(
            description="lines of one kind in a minute; the next one says how many were left out; 0: no limit",
            ge=0,
            le=1_000_000,
        ),
    ] = 600
    drain_s: Annotated[
        float,
        msgspec.Meta(
            description="how long a stopping dfud waits for answers under way", ge=0, le=600, extra={"unit": "s"}
        ),
    ] = 10.0


class PluginsConfig(msgspec.Struct, frozen=True):
    enabled: Annotated[list[str], msgspec.Meta(description="plugins to load, by the names of their entry points")] = (
        msgspec.field(default_factory=lambda: ["local", "http"])
    )


class ClusterConfig(msgspec.Struct, frozen=True):
    remembered_s: Annotated[
        float,
        msgspec.Meta(
            description="on a store that several dfud share: how long one remembers what another may have changed unheard",
            ge=1,
            le=86400,
            extra={"unit": "s"},
        ),
    ] = 300.0


CORE_SECTIONS = (
    Section("daemon", DaemonConfig, "The process."),
    Section("cluster", ClusterConfig, "Being one of several dfud on one store; docs/cluster.md."),
    Section("plugins", PluginsConfig, "What is loaded; `dfud plugins` lists what there is."),
)


def read_file(path: Path) -> dict[str, Any]:
    """Read TOML. Raises ConfigError if the file is not there or not TOML."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise ConfigError(
                f"{path}: there is no such file, expected dfud's configuration: --config names another one, and "
                f"`dfud check-config --full > {path}` writes one with every default"
            ) from error
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # TOMLDecodeError is one; a number of 5000 digits, or many brackets, another
        raise ConfigError(f"{path}: not TOML: {error}") from error


def enabled_plugins(document: Mapping[str, Any], path: str) -> list[str]:
    """Return the plugins that the file asks for; it is read before their sections are known."""
    table = document.get("plugins", {})
    problems: list[str] = []
    section = _section(Section("plugins", PluginsConfig), table, path, problems)
    if problems:
        raise ConfigErrors(problems)
    return list(section.enabled)


def build(document: Mapping[str, Any], sections: Iterable[Section], path: str) -> Config:
    """Turn the file's tables into the declared sections. Raises ConfigErrors for what is unknown or out of range."""
    config, problems = read(document, sections, path)
    if problems:
        raise ConfigErrors(problems)
    return config


def read(
    document: Mapping[str, Any], sections: Iterable[Section], path: str, *, strangers: bool = False
) -> tuple[Config, list[str]]:
    """Return the configuration as far as it can be read, and a sentence for each thing that is wrong with it.

    A key that is wrong has its default there; a section that lacks a key it needs is missing. strangers: tables that nobody
    declared are not told of, for not every plugin could be loaded.
    """
    problems: list[str] = []
    declared: dict[str, Section] = {}
    for section in sections:
        if section.name in declared:
            problems.append(f"{path}: section [{section.name}] is declared twice, by two plugins")
        declared[section.name] = section
    tables: dict[str, Mapping[str, Any]] = {}
    for problem, unknown in _collect(document, "", declared, tables, path):
        if not (unknown and strangers):
            problems.append(problem)
    found = {n: _section(s, tables.get(n, {}), path, problems) for n, s in declared.items()}
    return Config({name: section for name, section in found.items() if section is not None}, path), problems


def _collect(
    document: Mapping[str, Any],
    prefix: str,
    declared: Mapping[str, Section],
    tables: dict[str, Mapping[str, Any]],
    path: str,
) -> Iterator[tuple[str, bool]]:
    """Sort the file's tables into `tables`; yield what is wrong, and whether it is a table that nobody declared."""
    for key, value in document.items():
        name = f"{prefix}{key}"
        if name in declared and isinstance(value, Mapping):
            tables[name] = value
        elif isinstance(value, Mapping) and any(n.startswith(name + ".") for n in declared):
            yield from _collect(value, name + ".", declared, tables, path)
        elif isinstance(value, Mapping):
            yield f"{path}: table [{name}] is unknown{_suggest(name, declared)}", True
        else:
            where = f"[{prefix[:-1]}] " if prefix else ""
            yield f"{path}: {where}{key} stands outside of any section, expected it in a table", False


def _section(section: Section, table: Any, path: str, problems: list[str]) -> Any:
    """Return the section, with defaults for what is wrong, or None where a key is needed and not given."""
    if not isinstance(table, Mapping):
        problems.append(f"{path}: [{section.name}] is {type(table).__name__}, expected a table")
        table = {}
    fields = {f.encode_name: f for f in msgspec.structs.fields(section.type)}
    for key in table:
        if key not in fields:
            problems.append(f"{path}: [{section.name}] {key} is unknown{_suggest(key, fields)}")
    values = {}
    whole = True
    for key, field in fields.items():
        try:
            if key in table:
                values[field.name] = msgspec.convert(table[key], field.type, dec_hook=_secret)
            elif field.required:
                whole = False
                problems.append(
                    f"{path}: [{section.name}] {key} is missing, expected {expected(section.type, field.name)}"
                )
        except msgspec.ValidationError:
            whole = whole and not field.required
            shown = "the value given" if _is_secret(field.type) else repr(table[key])[:80]
            problems.append(f"{path}: [{section.name}] {key} {shown}, expected {expected(section.type, field.name)}")
    return section.type(**values) if whole else None


def _secret(kind: type, value: Any) -> Any:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise msgspec.ValidationError("expected text")


def _is_secret(kind: Any) -> bool:
    return kind is Secret or Secret in get_args(kind)


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f", did you mean {close[0]}?" if close else f", expected one of {', '.join(sorted(known))}"


def meta(struct: type[msgspec.Struct], name: str) -> msgspec.Meta:
    """Return the merged annotations of a field."""
    hint = get_type_hints(struct, include_extras=True)[name]
    return next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, msgspec.Meta)), msgspec.Meta())


def expected(struct: type[msgspec.Struct], name: str) -> str:
    """Say in words what a field takes: `1 to 65535`, `text`, `a list of text`."""
    m = meta(struct, name)
    hint = get_type_hints(struct)[name]
    if m.ge is not None and m.le is not None:
        return f"{m.ge} to {m.le}"
    if m.ge is not None:
        return f"a number from {m.ge} up"
    if m.pattern is not None:
        return m.pattern.strip("^$()").replace("|", ", ")
    if get_origin(hint) is list:
        return "a list of text"
    return {bool: "true or false", int: "an integer", float: "a number", str: "text", Secret: "text"}.get(
        hint, "a value"
    )


def sample(sections: Iterable[Section], *, enabled: list[str] | None = None) -> str:
    """Write a commented configuration of every section: what conf/dfud.full.toml holds.

    enabled: the plugins that it enables, so that its sections are known ones; None: the default.
    """
    lines = ["# dfud.toml: every section and key with its default. Made by `dfud check-config --full`."]
    for section in sections:
        lines += ["", f"[{section.name}]"] + ([f"# {section.doc}"] if section.doc else [])
        for field in msgspec.structs.fields(section.type):
            m = meta(section.type, field.name)
            unit = (m.extra or {}).get("unit", "")
            about = f"{m.description or field.encode_name}; {expected(section.type, field.name)}"
            lines.append(f"# {about}{f', in {unit}' if unit else ''}")
            default = (
                field.default_factory() if field.default is msgspec.NODEFAULT and not field.required else field.default
            )
            if (section.type, field.name) == (PluginsConfig, "enabled") and enabled is not None:
                default = enabled
            lines.append(
                f"{field.encode_name} = {_toml(default)}"
                if not field.required
                else f"# {field.encode_name} =  (needed)"
            )
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
