"""The code of the documents for plugin authors, so that tests run what is printed there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[2] / "docs"


def blocks(document: str, language: str) -> list[str]:
    """Return the blocks of a language in docs/`document`, in their order."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / document).read_text("utf-8"), re.DOTALL)


def module_of(document: str, name: str, code: str) -> ModuleType:
    """Return the module `name` that is printed in a document, the same one for everybody."""
    if name not in sys.modules:
        module = sys.modules[name] = ModuleType(name)  # msgspec looks up annotations there
        exec(compile(code, f"docs/{document}", "exec"), vars(module))
    return sys.modules[name]


def install(directory: Path, name: str, code: str, entry: str) -> None:
    """Do what pip does with a package of the one module `name`, without a network. entry: `plugin = module`."""
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.py").write_text(code)
    information = directory / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[dfud]\n{entry}\n")
