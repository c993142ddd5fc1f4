"""Lines of text logs that have a request in them: of the OpenAI SDK for Python, and of LiteLLM (pure).

Up to version 2 the SDK logs the body of each request with ``OPENAI_LOG=debug``, as Python writes it:
``… DEBUG] Request options: {'method': 'post', 'url': '/embeddings', …, 'json_data': {'input': …}}``. LiteLLM logs
requests with ``LITELLM_LOG=DEBUG`` as curl commands, whose body is on a line of its own: ``-d '{…}'``.
"""

from typing import Any

import orjson

from proxy.analysis import python_literals, timestamps
from proxy.analysis.call import Call, Unreadable, Unrelated

_SDK, _JSON_DATA, _URL = b"Request options: {", "'json_data': {", "'url': '"
_CURL = b"-d '{"
MARKERS = (_SDK, b"POST Request Sent from LiteLLM")


def parse(line: bytes) -> Call:
    """Raises `Unreadable` and `Unrelated`."""
    if _SDK in line:
        return _from_sdk(line)
    if line.lstrip().startswith(_CURL):
        return _from_curl(line)
    raise Unrelated("another log line")


def _from_sdk(line: bytes) -> Call:
    text = line[line.index(_SDK) :].decode(errors="replace")
    _, _, url = text.partition(_URL)
    if not url.partition("'")[0].endswith("/embeddings"):
        raise Unrelated("a request to another route")
    _, found, rest = text.partition(_JSON_DATA)
    if not found:
        raise Unreadable("a request without a body")
    return _call(python_literals.parse_dict("{" + rest), timestamps.find_in_text(line))


def _from_curl(line: bytes) -> Call:
    text = line.strip()[len(_CURL) - 1 :]
    body = text[: text.rindex(b"}") + 1] if b"}" in text else text
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        fields = python_literals.parse_dict(text.decode(errors="replace"))
    if type(fields) is not dict or "input" not in fields:
        raise Unrelated("a request to another route")
    return _call(fields, None)


def _call(fields: dict[str, Any], at_s: float | None) -> Call:
    try:
        body = orjson.dumps(fields)
    except (TypeError, orjson.JSONEncodeError):
        raise Unreadable("the logged request has values that are not JSON") from None
    return Call(orjson.loads(body), at_s=at_s)
