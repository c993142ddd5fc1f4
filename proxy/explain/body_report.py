"""The fields of a request body, each with its class and why (pure)."""

from typing import Any

import orjson

from proxy.explain.header_report import shown
from proxy.explain.report import FieldReport
from proxy.protocol.bypass import EXPLANATIONS
from proxy.protocol.embedding_request import EmbeddingRequest
from proxy.protocol.parameters import MEANINGS, FieldClass, class_of, doubt_about
from proxy.protocol.provider import Provider

_ALWAYS_KEYED = frozenset({FieldClass.MODEL, FieldClass.INPUT})


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
        value=None if kind is FieldClass.INPUT else shown(orjson.dumps(value).decode()),
        kind=kind.value,
        is_in_key=parsed is not None and (kind in _ALWAYS_KEYED or name in parsed.parameters),
        why=why,
    )
