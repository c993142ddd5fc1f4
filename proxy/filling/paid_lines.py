"""JSON Lines with a text and its vector each."""

from pathlib import Path
from typing import Any

import orjson

from proxy.filling.corpus import read_lines
from proxy.filling.paid import Paid, PaidText
from proxy.filling.results import RefusedText
from proxy.protocol import json_parts
from proxy.protocol.json_parts import JSONParseError, Raw

_TEXTS, _VECTORS = ("text", "input"), ("embedding", "vector")
_ACCEPTED = 'accepted: an object with a string "text" or "input", and an array or base64 "embedding" or "vector"'


def read_paid_lines(path: Path) -> Paid:
    """Raises `ConfigError` for a file that can't be read, also during the iteration."""
    for number, content in read_lines(path):
        yield parse_paid_line(number, content)


def parse_paid_line(number: int, content: bytes) -> PaidText | RefusedText:
    try:
        # The vector stays as it is written, for a parser of numbers that loses nothing.
        members = json_parts.members(content)
        text = _value(members, _TEXTS)
        tokens = json_parts.value(members.get("tokens"))
    except JSONParseError as error:
        return RefusedText(number, f"{error.reason}; {_ACCEPTED}")
    if type(text) is not str:
        return RefusedText(number, f"no text; {_ACCEPTED}")
    if not text:
        return RefusedText(number, "an empty text, which embeddings APIs refuse")
    embedding = next((members[name] for name in _VECTORS if name in members), None)
    if isinstance(embedding, Raw):
        written = bytes(embedding)
    elif isinstance(embedding, str):
        written = orjson.dumps(embedding)
    else:
        return RefusedText(number, f"no vector; {_ACCEPTED}")
    return PaidText(number, text, written, tokens if type(tokens) is int and tokens >= 0 else None)


def _value(members: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((json_parts.value(members[name]) for name in names if name in members), None)
