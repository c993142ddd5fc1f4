"""The texts of a corpus: a text a line, or JSON Lines; plain or gzipped."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

from proxy.errors import ConfigError
from proxy.input_file import MAX_LINE_BYTES, DamagedInput, opened

TEXT_KEYS = ("text", "input", "content")


class Line(NamedTuple):
    """A line of a file that is not blank; ``number`` counts from 1."""

    number: int
    content: bytes


class Text(NamedTuple):
    line: int
    text: str


def forbid_pipe(path: Path) -> None:
    """Raises `ConfigError` for what can be read only once: the second time, a pipe is empty."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: it can't be read twice, as a pipe; accepted: the name of a file")


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file that are not blank. Raises `ConfigError`, also during the iteration."""
    if str(path) == "-":
        raise ConfigError("-: standard input can't be read twice; accepted: the name of a file")
    with opened(path) as file:
        try:
            for number, line in enumerate(file.lines(), 1):
                if line is None:
                    raise ConfigError(f"{path}:{number}: a line of more than {MAX_LINE_BYTES:,} bytes")
                if line and not line.isspace():
                    yield Line(number, line)
        except DamagedInput as damage:
            raise ConfigError(f"{path}: {damage}") from damage


def read_texts(path: Path) -> Iterator[Text]:
    """The texts of a corpus, in order. Raises `ConfigError` for a line without one, also during the iteration.

    If the first line is an object of JSON, every line has to be one, with its text under a key of `TEXT_KEYS`.
    """
    is_json = None
    for number, content in read_lines(path):
        if is_json is None:
            is_json = _has_objects(content, path)
        try:
            yield Text(number, text_of(content) if is_json else content.decode())
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}:{number}: not UTF-8") from error
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}") from error


def _has_objects(first: bytes, path: Path) -> bool:
    if first.lstrip().startswith(b"["):
        raise ConfigError(f"{path}: a JSON array; accepted: JSON Lines (jq -c '.[]' makes them), or a text a line")
    return first.lstrip().startswith(b"{")


def text_of(content: bytes) -> str:
    """The text in an object of JSON. Raises `ValueError`."""
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from error
    found = [record[key] for key in TEXT_KEYS if key in record] if type(record) is dict else []
    if not found or type(found[0]) is not str:
        raise ValueError('no text; accepted: an object with a string "text", "input" or "content"')
    if not found[0]:
        raise ValueError("an empty text, which embeddings APIs refuse")
    return found[0]
