"""The input and output files of OpenAI's Batch API, joined by ``custom_id``.

https://platform.openai.com/docs/guides/batch: a line of input is ``{"custom_id", "method", "url", "body"}``, a line of
output ``{"custom_id", "response": {"status_code", "body"}, "error"}``, in any order. Other providers' are the same.
"""

from pathlib import Path
from typing import Any, NamedTuple

import orjson

from proxy.errors import ConfigError
from proxy.filling.corpus import read_lines
from proxy.filling.paid import Paid, PaidCall
from proxy.filling.results import RefusedText
from proxy.protocol import json_parts
from proxy.protocol.json_parts import JSONParseError, Raw

_OK = 200
_INPUT_SHAPE = 'accepted: the input file of a batch, {"custom_id": …, "url": "/v1/embeddings", "body": {…}} a line'
_OUTPUT_SHAPE = 'accepted: the output file of a batch, {"custom_id": …, "response": {"body": {…}}} a line'


class _Sent(NamedTuple):
    path: str
    body: bytes


def read_batch_files(sent: Path, received: Path) -> Paid:
    """The calls of a batch, by the lines of its output file. Raises `ConfigError` for a file that is not a batch's."""
    requests = _read_input(sent)
    for number, content in read_lines(received):
        yield _joined(number, content, requests, received)


def _read_input(path: Path) -> dict[str, _Sent]:
    requests: dict[str, _Sent] = {}
    for number, content in read_lines(path):
        try:
            members = json_parts.members(content)
        except JSONParseError as error:
            raise ConfigError(f"{path}:{number}: {error.reason}; {_INPUT_SHAPE}") from error
        custom_id, url, body = (members.get(name) for name in ("custom_id", "url", "body"))
        if type(custom_id) is not str or type(url) is not str or type(body) is not Raw:
            raise ConfigError(f"{path}:{number}: no request; {_INPUT_SHAPE}")
        if custom_id in requests:
            raise ConfigError(f"{path}:{number}: the custom_id {custom_id!r} is there twice")
        requests[custom_id] = _Sent(url, bytes(body))
    return requests


def _joined(number: int, content: bytes, requests: dict[str, _Sent], path: Path) -> PaidCall | RefusedText:
    try:
        members = json_parts.members(content)
        response = members.get("response")
        inner = json_parts.members(bytes(response)) if type(response) is Raw else {}
    except JSONParseError as error:
        return RefusedText(number, f"{error.reason}; {_OUTPUT_SHAPE}")
    custom_id = members.get("custom_id")
    if type(custom_id) is not str:
        raise ConfigError(f"{path}:{number}: no custom_id; {_OUTPUT_SHAPE}")
    request = requests.get(custom_id)
    if request is None:
        return RefusedText(number, f"the input file has no request with the custom_id {custom_id!r}")
    body = inner.get("body")
    if inner.get("status_code") != _OK or type(body) is not Raw:
        return RefusedText(number, f"the request failed: {_failure(members.get('error'), body)}")
    return PaidCall(number, request.path, request.body, bytes(body))


def _failure(error: Any, body: Any) -> str:
    for part in (error, body):
        try:
            found = orjson.loads(part) if type(part) is Raw else None
        except orjson.JSONDecodeError:
            continue
        inner = found.get("error", found) if type(found) is dict else None
        if type(inner) is dict and type(inner.get("message")) is str:
            return " ".join(inner["message"].split())[:200]
    return "it has no response"
