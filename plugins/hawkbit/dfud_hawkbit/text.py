"""Text of strangers as hawkBit takes it. Pure.

hawkBit 1.0.4 and 1.1.0 parse every message as XML and refuse the whole request (400) for one that holds an element or a
comment, such as `<module>`, which every MicroPython traceback has. PostgreSQL refuses U+0000. hawkBit counts UTF-16.
"""

from __future__ import annotations

_ANGLES = {ord("<"): "‹", ord(">"): "›"}
_REPLACED = "\N{REPLACEMENT CHARACTER}"


def acceptable(text: str) -> str:
    """Return one line without markup, control characters and lone surrogates; never empty."""
    words = " ".join(text.translate(_ANGLES).split())
    return "".join(c if c.isprintable() else _shown(c) for c in words) or "-"


def _shown(char: str) -> str:
    # Directions and the like are kept off a person's screen, too; spaces of other kinds are not.
    return " " if char.isspace() else _REPLACED


def pieces(text: str, units: int) -> list[str]:
    """Cut `text` into pieces of at most `units` UTF-16 code units."""
    chars = units if text.isascii() or max(text) <= "\uffff" else units // 2
    return [text[at : at + chars] for at in range(0, len(text), chars)]


def cut(text: str, units: int) -> str:
    """Return the beginning of `text` that has at most `units` UTF-16 code units."""
    return pieces(text, units)[0] if text else ""
