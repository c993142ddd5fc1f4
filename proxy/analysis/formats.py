"""The format of a file, and how its lines are parsed (pure)."""

from collections.abc import Callable
from enum import StrEnum

import orjson

from proxy.analysis import json_lines, text_logs
from proxy.analysis.call import Call, Text, Unreadable
from proxy.errors import ConfigError

_MAX_SAMPLED = 200  # lines


class Format(StrEnum):
    JSONL = "jsonl"  # JSON Lines: texts, request bodies, records of logs, input of the Batch API
    TEXT = "text"  # a text on each line
    LOG = "log"  # a text log with requests in it


def detect(sample: bytes, name: str) -> Format:
    """The format of the file that begins with ``sample``. Raises `ConfigError` for a JSON array."""
    if any(marker in sample for marker in text_logs.MARKERS) and not sample.lstrip().startswith(b"{"):
        return Format.LOG
    lines = [line for line in sample.splitlines()[:_MAX_SAMPLED] if line.strip()]
    if len(lines) > 1:
        del lines[-1:]  # it may be cut off
    if lines and _is_json_array(sample.lstrip()):
        raise ConfigError(f"{name}: a JSON array and not JSON Lines; convert it with: jq -c '.[]'")
    objects = sum(line.lstrip().startswith((b'{"', b"{ ", b"{}")) for line in lines)
    return Format.JSONL if lines and objects * 2 >= len(lines) else Format.TEXT


def _is_json_array(text: bytes) -> bool:
    if not text.startswith(b"["):
        return False
    first = text[1:].lstrip()[:1]
    if first == b"{":
        return True
    try:
        return first == b'"' and type(orjson.loads(text)) is list
    except orjson.JSONDecodeError:
        return False


def _parse_text(line: bytes) -> Text:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise Unreadable("not UTF-8") from None
    return Text(text)


PARSERS: dict[Format, Callable[[bytes], Call | Text]] = {
    Format.JSONL: json_lines.parse,
    Format.TEXT: _parse_text,
    Format.LOG: text_logs.parse,
}
