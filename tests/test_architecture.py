"""Imports point one way; plugins use the promise only; nothing happens at import."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What a part may import of dfud, beside itself. wire and package know no store; a plugin could have been written elsewhere.
ALLOWED = {
    "errors": set(),
    "model": {"errors"},
    "wire": {"errors", "model"},
    "package": {"errors", "wire", "model"},
    "board": {"errors", "wire", "model"},
    "api": {"errors", "model"},
    "registry": {"errors", "model", "wire", "api"},
    "controller": {"errors", "model", "wire", "package", "api"},
    "endpoint": {"errors", "model", "wire", "api", "controller"},
    "daemon": {"errors", "model", "api", "registry", "controller", "endpoint"},
    "cli": {"errors", "model", "wire", "package", "board"},
    "testing": {"errors", "model", "wire", "api", "package"},
}
PLUGINS_MAY = {"api", "testing"}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module


def test_imports_point_one_way() -> None:
    wrong = []
    for part, allowed in ALLOWED.items():
        base = ROOT / "dfud" / part
        for path in [base.with_suffix(".py")] if base.with_suffix(".py").exists() else sorted(base.rglob("*.py")):
            for line, module in imports(path):
                names = module.split(".")
                if names[0] in ("devicefw", "bootloader", "tests") or names[0].startswith("dfud_"):
                    if not (part == "daemon" and module == "devicefw.sim.cli"):
                        wrong.append(f"{path.relative_to(ROOT)}:{line}: {part} may not import {module}")
                elif names[0] == "dfud" and len(names) > 1 and names[1] not in {part, *allowed}:
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: {part} may not import {names[1]}")
    assert wrong == []


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "dfud").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def targets(path: Path) -> Iterator[str]:
    """Yield what a module imports, also within functions: the modules themselves where they are named one by one."""
    known = modules()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in named if name in known)
            if any(name not in known for name in named):
                yield node.module


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name: {t for t in targets(path) if t in modules() and t != name} for name, path in modules().items()}
    left = dict(graph)
    while leaves := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in leaves:
            del left[name]
    circles = sorted(left)
    assert circles == [], f"these import each other in a circle, or what does: {circles}"


def test_every_part_is_listed() -> None:
    found = {p.stem for p in (ROOT / "dfud").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found - {"__init__"} == set(ALLOWED) & found


def test_plugins_use_the_promise_only() -> None:
    wrong = []
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        own = path.relative_to(ROOT / "plugins").parts[1]
        for line, module in imports(path):
            names = module.split(".")
            if (names[0] == "dfud" and (len(names) < 2 or names[1] not in PLUGINS_MAY)) or (
                names[0].startswith("dfud_") and names[0] != own
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: a plugin may not import {module}")
    assert wrong == []


def test_nothing_reads_the_environment_or_a_file_when_it_is_imported() -> None:
    wrong = []
    for base in ("dfud", "plugins"):
        for path in sorted((ROOT / base).rglob("*.py")):
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)):
                    continue
                for inner in ast.walk(node):
                    name = inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", "")
                    if name in ("environ", "getenv", "open", "read_text", "read_bytes"):
                        wrong.append(f"{path.relative_to(ROOT)}:{getattr(inner, 'lineno', 0)}: {name}")
    assert wrong == []


def test_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for base in ("dfud", "plugins", "devicefw")
        for path in (ROOT / base).rglob("*.py")
        if (count := len(path.read_text("utf-8").splitlines())) > 500
    }
    assert long == {}


CODE = ("dfud", "plugins", "devicefw", "bootloader", "tests", "bench")
LONGEST_LINES = 500


def test_files_stay_short() -> None:
    found = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines())
        for part in CODE
        for path in (ROOT / part).rglob("*")
        if path.suffix in (".py", ".c", ".h", ".S")
    }
    long = {name for name, lines in found.items() if lines > LONGEST_LINES}
    assert not long, f"longer than {LONGEST_LINES} lines, split them: {sorted(long)}"
    assert len(found) > 500


MANY_FIELDS = 10
FEW_ARGUMENTS = 6


def fields(node: ast.ClassDef) -> int:
    """Return how many fields a struct, dataclass or named tuple has of its own; 0 for other classes."""
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    made = bases & {"Struct", "NamedTuple", "Plain"} or any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    return sum(isinstance(line, ast.AnnAssign) for line in node.body) if made else 0


def test_structs_with_many_fields_are_built_by_name() -> None:
    """Ten values in a row say nothing to who reads them, and two of one type change places unseen."""
    structs, calls = set(), []
    for path in (path for part in CODE for path in sorted((ROOT / part).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and fields(node) >= MANY_FIELDS:
                structs.add(node.name)
            elif isinstance(node, ast.Call) and len(node.args) > FEW_ARGUMENTS:
                calls.append((f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func).rpartition(".")[2], len(node.args)))
    assert {"Firmware", "Deployment", "Status"} <= structs
    wrong = [f"{where}: {name} of {count} values without names" for where, name, count in calls if name in structs]
    assert wrong == []
