"""The fields of a request body, each with its class and why (pure)."""

import re
from typing import Any

import orjson

from proxy.explain.header_report import shown
from proxy.explain.report import FieldReport
from proxy.protocol.bypass import EXPLANATIONS
from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.parameters import MEANINGS, FieldClass, class_of, doubt_about
from proxy.protocol.provider import Provider

_ALWAYS_KEYED = frozenset({FieldClass.MODEL, FieldClass.INPUT})
# Values of other fields may be texts, credentials or names of people: nobody knows what a client sends as `texts`.
_SHOWN = frozenset({FieldClass.MODEL, FieldClass.STREAM, FieldClass.FIXED, FieldClass.ENCODING})
_WORD = re.compile(r"[\w.-]{1,24}")


def report_body(fields: dict[str, Any], provider: Provider, parsed: EmbeddingRequest | None) -> list[FieldReport]:
    """``parsed`` is None for a request that is not cached."""
    return [_report(name, value, provider, parsed) for name, value in fields.items()]


def _report(name: str, value: Any, provider: Provider, parsed: EmbeddingRequest | None) -> FieldReport:
    kind = class_of(name, provider)
    doubt = None if kind in _ALWAYS_KEYED else doubt_about(name, value, provider)
    harmless = {**provider.fixed, **provider.cross_item}.get(name)
    why = MEANINGS[kind].format(orjson.dumps(harmless).decode())
    if doubt is not None and kind is not FieldClass.UNKNOWN:
        why += f"; {EXPLANATIONS[doubt.reason]}"
    return FieldReport(
        name=shown(name),
        value=shown(orjson.dumps(value).decode()) if _is_shown(kind, value) else None,
        kind=kind.value,
        is_in_key=parsed is not None and (kind in _ALWAYS_KEYED or name in parsed.parameters),
        why=why,
    )


def parameters_of(parsed: EmbeddingRequest, provider: Provider) -> dict[str, Any]:
    """The fields of the key besides the input, with the values that can be shown."""
    return {
        name: value if _is_shown(class_of(name, provider), value) else "…"
        for name, value in parsed.parameters.items()
        if name != "input"
    }


def _is_shown(kind: FieldClass, value: Any) -> bool:
    """Whether it can't be a text or a secret. Numbers, true and null can't, nor can words like ``search_query``."""
    if isinstance(value, str | list | dict):
        is_word = kind is FieldClass.KEY and isinstance(value, str) and _WORD.fullmatch(value) is not None
        return kind in _SHOWN or is_word
    return kind is not FieldClass.INPUT
