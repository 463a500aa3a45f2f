"""Text of strangers, made fit to be shown: in a terminal, a log, a page. Pure.

What a device, a user or another system calls something may hold escape sequences that a terminal obeys, marks that reorder a
line, and characters that nobody sees. Everything that shows such text shows `visible(text)`. It is no protection against HTML
or the markup of a library: whoever writes HTML escapes the result as well.
"""

from __future__ import annotations

import json
import re
from typing import Any

# What str.isprintable() takes and yet shows nothing: Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt, without
# the variation selectors, which choose the shape of the character before them; and the blank Braille pattern.
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0"
_UNUSUAL = re.compile(r"[^ -~]")
_BLANKS = re.compile(f"[{_BLANK}]")


def hidden(character: str) -> bool:
    """Say whether a character shows nothing or changes how others are shown.

    True for controls (C0, DEL, C1), direction marks and other format characters, line and paragraph separators, every space
    but U+0020, surrogates, private use, characters that Unicode has not assigned, and letters that are blank.
    """
    return not character.isprintable() or _BLANKS.match(character) is not None


def visible(text: str) -> str:
    r"""Return `text` in one line in which every hidden character is an escape: `\n`, `\x1b`, `\u202e`, `\U000e0001`.

    Backslashes stay as they are, so the result is for reading and cannot be turned back. visible(visible(t)) == visible(t).
    """
    return _UNUSUAL.sub(_shown, text)


def visible_lines(text: str) -> list[str]:
    r"""Return the lines of `text`, such as a traceback's, each of them visible(). Only LF, CR LF and CR end a line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [visible(line) for line in (lines[:-1] if lines[-1] == "" else lines)]


def visible_json(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON that reads back the same and holds no hidden character but the newlines of `indent`."""
    # Outside of ASCII there are only strings in it, so \uXXXX may stand wherever a hidden character does.
    return _UNUSUAL.sub(_escaped, json.dumps(value, indent=indent, ensure_ascii=False))


_SHORT = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def _shown(found: re.Match[str]) -> str:
    character = found[0]
    if not hidden(character):
        return character
    code = ord(character)
    wide = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return _SHORT.get(character, wide)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if character == "\n" or not hidden(character):
        return character
    return json.dumps(character)[1:-1] if ord(character) > 0x7F else f"\\u{ord(character):04x}"
