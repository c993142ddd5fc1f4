"""Dictionaries as Python programs log them: by their `repr` (pure)."""

import ast
from typing import Any

from proxy.analysis.call import Unreadable

_QUOTES = "'\""


def parse_dict(text: str) -> dict[str, Any]:
    """The dictionary that ``text`` begins with. Raises `Unreadable`."""
    end = _end(text)
    if end is None:
        raise Unreadable("the logged request is cut off")
    try:
        value = ast.literal_eval(text[:end])
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise Unreadable("the logged request has values that are not JSON") from None
    if type(value) is not dict:
        raise Unreadable("the logged request is no object")
    return value


def _end(text: str) -> int | None:
    """Where the bracket that ``text`` begins with is closed; None if it is not."""
    depth, position = 0, 0
    while position < len(text):
        letter = text[position]
        if letter in _QUOTES:
            closing = _end_of_string(text, position)
            if closing is None:
                return None
            position = closing
        elif letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth -= 1
            if depth <= 0:
                return position + 1
        position += 1
    return None


def _end_of_string(text: str, start: int) -> int | None:
    quote, position = text[start], start + 1
    while True:
        closing = text.find(quote, position)
        if closing < 0:
            return None
        escape = text.find("\\", position, closing)
        if escape < 0:
            return closing
        position = escape + 2
