"""What hawkBit takes for markup in a message. Source: ValidStringValidator of 1.0.4, which has jsoup parse it as XML and refuses
whatever is more than text; and RestConfiguration, which makes the error body."""

from __future__ import annotations

import re

from tests.plugins.hawkbit.model.entities import Problem

# A tag, a comment, a declaration or an instruction that is closed; `<` before anything else is text, an end tag alone nothing.
_MARKUP = re.compile(r"<[A-Za-z][^>]*>|<!(?!\[CDATA\[)[^>]*>|<\?[^>]*>")
CODE = "hawkbit.server.error.repo.constraintViolation"


def check(messages: list[str], call: str) -> None:
    """Raise Problem for messages that hawkBit refuses; it names the first of them."""
    for number, text in enumerate(messages):
        if _MARKUP.search(text):
            where = f"{call}.create.messages[{number}].<collection element>"
            why = f"{where} Invalid characters in string."
            raise Problem(400, CODE, why, "jakarta.validation.ConstraintViolationException")
