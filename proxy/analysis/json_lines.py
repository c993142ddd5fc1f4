"""A line of JSON: a text of a corpus, a request body, or a record of a log with a request in it (pure)."""

from typing import Any

import orjson

from proxy.analysis import litellm_logs, text_logs, timestamps
from proxy.analysis.call import DEFAULT_TARGET, Call, Text, Unreadable, Unrelated
from proxy.protocol.targets import is_embeddings_like

_WRAPPERS = ("request", "body", "request_body", "requestBody", "req", "payload", "data", "json", "params")
_ANY_WRAPPER = frozenset(_WRAPPERS)
_TEXTS = ("text", "input", "content")
_MESSAGES = ("message", "msg", "event", "log")
_MAX_NESTING = 3  # wrappers in each other
_OTHER_ROUTES = ("messages", "prompt", "query", "file")


def parse(line: bytes) -> Call | Text:
    """Raises `Unreadable` and `Unrelated`."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise Unreadable("not JSON") from None
    if type(record) is str:
        return _text(record)
    if type(record) is not dict:
        raise Unreadable("not a JSON object")
    if "model" in record and "input" in record and "call_type" not in record:  # the most frequent first
        return Call(record, line.strip())
    return _from_record(record)


def _from_record(record: dict[str, Any]) -> Call | Text:
    at_s = timestamps.find(record)
    if litellm_logs.is_record(record):
        return litellm_logs.parse(record, at_s)
    text = next((value for name in _TEXTS if type(value := record.get(name)) is str), None)
    try:
        if (found := _wrapped(record, at_s)) is not None:
            return found
    except (Unreadable, Unrelated):
        if text is None:  # else it is a text with an object of its own beside it
            raise
    if text is not None:
        return _text(text)
    if "input" in record:  # a request without a model, which some servers do not need
        return Call(record, at_s=at_s)
    for name in _MESSAGES:
        if type(value := record.get(name)) is str:
            return _from_message(value, at_s)
    if any(name in record for name in _OTHER_ROUTES):
        raise Unrelated("a request to another API")
    raise Unreadable('no "text", "input" or "content", and no request')


def _from_message(message: str, at_s: float | None) -> Call:
    call = text_logs.parse(message.encode(errors="replace"))
    return call if at_s is None else call._replace(at_s=at_s)


def _text(text: str) -> Text:
    if not text:
        raise Unreadable("an empty text")
    return Text(text)


def _wrapped(record: dict[str, Any], at_s: float | None) -> Call | None:
    """The request within a record of a log; None if there is none.

    Of several times, URLs or headers, those nearest to the body count:
    ``{"ts": …, "request": {"url": …, "headers": …, "body": …}}``.
    """
    level, target, method = record, DEFAULT_TARGET, "POST"
    headers: tuple[tuple[str, str], ...] = ()
    for _ in range(_MAX_NESTING):
        at_s = at_s if (own := timestamps.find(level)) is None else own
        headers = _headers(level) or headers
        target = _target(level) or target
        method = level["method"] if type(level.get("method")) is str else method
        inner = _inner(level)
        if inner is None:
            return None
        body, fields = inner
        if "input" in fields or _ANY_WRAPPER.isdisjoint(fields):
            return _checked(Call(fields, body, headers, target, at_s), method)
        level = fields
    return None


def _inner(level: dict[str, Any]) -> tuple[bytes | None, dict[str, Any]] | None:
    """The object in ``level`` that has an input or another wrapper, or else the first object under a wrapper's name."""
    other = None
    for name in _WRAPPERS:
        if name in level and (found := _object(level[name])) is not None:
            if "input" in found[1] or not _ANY_WRAPPER.isdisjoint(found[1]):
                return found
            other = other or found
    return other


def _object(value: Any) -> tuple[bytes | None, dict[str, Any]] | None:
    """The JSON object that ``value`` is or has as text. The first result is that text's bytes, or None."""
    if type(value) is dict:
        return None, value
    if type(value) is str and value.lstrip().startswith("{"):
        body = value.encode(errors="surrogatepass")
        try:
            fields = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise Unreadable("the request's body is not JSON, or is cut off") from None
        return (body, fields) if type(fields) is dict else None
    return None


def _checked(call: Call, method: str) -> Call:
    if call.target != DEFAULT_TARGET and not is_embeddings_like(call.target):
        raise Unrelated("a request to another route")
    if method.upper() != "POST":
        raise Unrelated("not a POST")
    if "input" not in call.fields:
        raise Unrelated("a request to another API")
    return call


def _headers(level: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Header fields as an object, as pairs, or as HAR has them."""
    value = next((level[name] for name in ("headers", "request_headers") if name in level), None)
    if type(value) is dict:
        found = [(name, one) for name, own in value.items() for one in (own if type(own) is list else [own])]
    elif type(value) is list:
        found = [pair for item in value if (pair := _pair(item)) is not None]
    else:
        return ()
    return tuple((name, one) for name, one in found if type(name) is str and type(one) is str)


def _pair(item: Any) -> tuple[Any, Any] | None:
    if type(item) is dict:
        return item.get("name"), item.get("value")
    return (item[0], item[1]) if type(item) is list and len(item) == 2 else None  # noqa: PLR2004 - name, value


def _target(level: dict[str, Any]) -> str | None:
    """Path and query of the request, which may be logged as a whole URL."""
    for name in ("url", "target", "path", "endpoint", "uri", "route"):
        value = level.get(name)
        if type(value) is not str or not value.isascii():
            continue
        rest = value.partition("://")[2]
        target = "/" + rest.partition("/")[2] if rest else value
        if target.startswith("/") and target != "/":
            return target
    return None
