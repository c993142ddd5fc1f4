"""Records of LiteLLM's logging callbacks, as it writes them to S3, GCS, a queue or a file (pure).

https://docs.litellm.ai/docs/proxy/logging_spec: for an embeddings call, ``messages`` is the input and
``model_parameters`` has the other fields of the body.
"""

from typing import Any

import orjson

from proxy.analysis.call import Call, Unreadable, Unrelated

_CALL_TYPES = frozenset({"embedding", "aembedding"})
_REDACTED = "redacted-by-litellm"
_TRUNCATED = "litellm_truncated"
# Fields of ``model_parameters`` that LiteLLM uses itself and does not send upstream.
_OWN = frozenset({"metadata", "litellm_metadata", "extra_headers", "timeout", "max_retries", "stream_options"})


def is_record(record: dict[str, Any]) -> bool:
    return type(record.get("call_type")) is str or "standard_logging_object" in record or "litellm_params" in record


def parse(record: dict[str, Any], at_s: float | None) -> Call:
    """Raises `Unreadable` and `Unrelated`."""
    inner = record.get("standard_logging_object")
    record = inner if type(inner) is dict else record
    kind = record.get("call_type")
    if type(kind) is str and kind not in _CALL_TYPES:
        raise Unrelated("a LiteLLM call of another type")
    fields = _body(record) or _fields(record)
    if _REDACTED in (given := _texts(fields["input"])):
        raise Unreadable("LiteLLM has redacted the texts")
    if any(_TRUNCATED in text for text in given):
        raise Unreadable("LiteLLM has truncated the texts")
    return Call(fields, at_s=at_s)


def _body(record: dict[str, Any]) -> dict[str, Any] | None:
    """The client's own body, which the LiteLLM gateway logs."""
    parameters = record.get("litellm_params")
    holder = parameters if type(parameters) is dict else record
    request = holder.get("proxy_server_request")
    if type(request) is str:
        try:
            request = orjson.loads(request)
        except orjson.JSONDecodeError:
            return None
    if type(request) is not dict:
        return None
    body = request.get("body", request)
    return body if type(body) is dict and "input" in body else None


def _fields(record: dict[str, Any]) -> dict[str, Any]:
    given = record.get("messages", record.get("input"))
    if given is None or given in ("", [], {}):
        raise Unreadable("LiteLLM has not logged the texts")
    more = record.get("model_parameters", record.get("optional_params"))
    more = {name: value for name, value in more.items() if name not in _OWN} if type(more) is dict else {}
    return {"model": record.get("model_group") or record.get("model"), "input": _input(given)} | more


def _input(given: Any) -> Any:
    """The input. Callbacks for chats have it as messages of a user."""
    if type(given) is list and given and all(type(item) is dict and "role" in item for item in given):
        texts = [item.get("content") for item in given]
        inner = texts[0] if len(texts) == 1 else texts
        return inner if type(inner) is not list or len(inner) != 1 else inner[0]
    return given


def _texts(given: Any) -> list[str]:
    return [text for text in (given if type(given) is list else [given]) if type(text) is str]
