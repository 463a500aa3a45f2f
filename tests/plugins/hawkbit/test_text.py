"""Text of strangers as hawkBit takes it."""

from __future__ import annotations

from dfud_hawkbit.text import acceptable, cut, pieces
from hypothesis import given
from hypothesis import strategies as st

from tests.plugins.hawkbit.model.markup import check


@given(st.text(max_size=300))
def test_whatever_a_device_says_is_one_line_without_markup(text: str) -> None:
    found = acceptable(text)
    assert found and found.isprintable() and not set(found) & set("<>\n\0")
    assert acceptable(found) == found
    check([found], "any")


def test_a_traceback_stays_readable() -> None:
    assert acceptable('  File "main.py", line 3, in <module>\r\n') == 'File "main.py", line 3, in \u2039module\u203a'
    assert acceptable("a\x1b[31mb\u202ec\0") == "a\ufffd[31mb\ufffdc\ufffd"
    assert acceptable("\ud800") == "\ufffd"
    assert acceptable(" \n") == "-"


@given(st.text(min_size=1, max_size=300), st.integers(2, 64))
def test_pieces_are_counted_as_java_does(text: str, units: int) -> None:
    found = pieces(acceptable(text), units)
    assert all(len(piece.encode("utf-16-le")) <= 2 * units for piece in found)
    assert "".join(found) == acceptable(text)
    assert cut(text, units) == pieces(text, units)[0]
