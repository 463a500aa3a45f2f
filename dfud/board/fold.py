"""The agent's sources as the compiler is to see them. Pure."""

from __future__ import annotations

import re
from collections import Counter


def folded(sources: dict[str, str]) -> dict[str, str]:
    """Return the modules with their own whole numbers as constants of the compiler: a name that no other module uses would
    stay in the interpreter's table for ever, and cost a lookup each time."""
    found = {}
    words = {name: set(re.findall(r"\w+", text)) for name, text in sources.items()}
    uses = Counter(word for said in words.values() for word in said)
    for name, text in sources.items():
        others = {word for word, count in uses.items() if count > (word in words[name])}
        for line in re.findall(r"^[A-Z][A-Z0-9_]*(?:, [A-Z][A-Z0-9_]*)* = .*$", text, re.M):
            left, _, right = line.partition(" = ")
            names, values = left.split(", "), right.split("#")[0].strip().split(", ")
            if len(names) != len(values) or not all(re.fullmatch(r"0x[0-9A-F]+|\d+", value) for value in values):
                continue
            text = text.replace(
                line + "\n", "".join(_constant(*one, others) for one in zip(names, values, strict=True)), 1
            )
            for one in names:
                if one not in others:
                    text = re.sub(rf"(?<![\w.]){one}\b", f"_{one}", text)
        found[name] = text
    return found


def _constant(name: str, value: str, others: set[str]) -> str:
    return f"{name} = const({value})\n" if name not in others else f"{name} = {value}\n"
