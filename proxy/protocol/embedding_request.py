"""OpenAI's embeddings JSON as typed requests (pure).

https://platform.openai.com/docs/api-reference/embeddings
"""

import sys
from typing import Any, NamedTuple

import orjson

from proxy.labels import BypassReason
from proxy.protocol import json_structure
from proxy.protocol.bypass import Bypass
from proxy.protocol.items import ItemKind, parse_items
from proxy.protocol.parameters import (
    find_undescribed,
    forbid_two_encodings,
    parse_parameters,
    parse_whole_parameters,
)
from proxy.protocol.provider import Provider
from proxy.protocol.request_body import count_items, forbid_duplicate_names, forbid_many_items, model_of, parse_object
from proxy.protocol.targets import PathModel
from proxy.protocol.vectors import DType, Encoding
from proxy.protocol.volatile_input import forbid_references, forbid_remote_media, forbid_volatile
from proxy.steps import Steps, finish

# Of a model's name, which is in each record: many upstreams repeat in the response whatever name the client sent.
MAX_MODEL_CHARS = 1024
_MAX_COUNTED_BYTES = 16 * 1024  # of JSON whose structure is counted in one step
_TOKEN_BYTES = 32  # an integer object
# Reasons why a request can't be keyed item by item that allow keying it by its whole body.
_WHOLE_REASONS = frozenset(
    {
        BypassReason.CROSS_ITEM,
        BypassReason.EMPTY_ITEM,
        BypassReason.INPUT_FORM,
        BypassReason.LIST_PARAMETER,
        BypassReason.MODEL,
        BypassReason.UNKNOWN_FIELD,
    }
)
# Those of them with which the meaning of `input` is known. With the others, a text in it may be the URL of an image.
_INPUT_IS_KNOWN = frozenset({BypassReason.CROSS_ITEM, BypassReason.EMPTY_ITEM, BypassReason.MODEL})


class EmbeddingRequest(NamedTuple):  # a frozen dataclass takes three times as long to construct
    """A request that can be cached. ``items`` are in input order: str, list[int] or dict, according to ``kind``.

    A request keyed by its whole body has items of any type, and ``doubt`` is the reason why it can't be keyed item by
    item.
    """

    model: str | None  # from the body, or else from the path; None: absent, where the provider allows that
    kind: ItemKind
    items: list[Any]
    encoding: Encoding
    packed: DType | None  # the integer type that the request names
    parameters: dict[str, Any]  # the fields that change the vector, as given: null is not absent
    fields: dict[str, Any]  # the whole body
    body: bytes  # the same, as received
    doubt: Bypass | None = None
    # False: base64 may contain other numbers than float32 (vLLM's `embed_dtype`) or several vectors (Jina's
    # `return_multivector`), and this request does not ask for base64.
    reads_base64: bool = True

    @property
    def is_keyed_whole(self) -> bool:
        return self.kind is ItemKind.WHOLE


def parse_request(
    body: bytes,
    fields: dict[str, Any],
    provider: Provider,
    path_model: PathModel | None = None,
    *,
    members: int | None = None,
) -> EmbeddingRequest:
    """Parse a request to ``provider``. ``fields`` is `parse_object` of ``body``; ``path_model`` is the model that the
    path names; ``members`` is the number of members of all objects in ``body``, if they have been counted.

    A request that can't be keyed item by item is keyed by its whole body if the same body certainly means the same.
    Otherwise raises `Bypass`.
    """
    forbid_many_items(fields)
    if members is None:
        members = json_structure.of(body).members
    try:
        return finish(parse_items_apart(body, fields, provider, path_model, members=members))
    except Bypass as doubt:
        if doubt.reason not in _WHOLE_REASONS:
            raise
        return _parse_whole(body, fields, provider, path_model, doubt, members=members)


def parse_items_apart(
    body: bytes, fields: dict[str, Any], provider: Provider, path_model: PathModel | None, *, members: int
) -> Steps[EmbeddingRequest]:
    """`parse_request` of a request with a key for each item. Raises `Bypass` for any other."""
    forbid_many_items(fields)
    _forbid_long_model(fields, path_model)
    model = _parse_model(fields, provider, path_model)
    kind, items = yield from parse_items(fields.get("input"), provider.inputs)
    yield from forbid_duplicate_names(members, fields, kind)
    forbid_two_encodings(fields, provider)
    output, parameters = parse_parameters(fields, provider)
    if "modality" in parameters:
        forbid_remote_media(parameters["modality"], items)
    forbid_references(kind, items, provider)
    if type(model) is str:
        if len(items) > 1 and provider.is_fused_model(model):
            raise Bypass(BypassReason.CROSS_ITEM)
        if provider.is_multi_vector_model(model):
            raise Bypass(BypassReason.MULTI_VECTOR)
    return EmbeddingRequest(
        model=model,
        kind=kind,
        items=items,
        encoding=output.encoding,
        packed=output.packed,
        parameters=parameters,
        fields=fields,
        body=body,
    )


def _forbid_long_model(fields: dict[str, Any], path_model: PathModel | None) -> None:
    for name in (model_of(fields), None if path_model is None else path_model.model):
        if name is not None and len(name) > MAX_MODEL_CHARS:
            raise Bypass(BypassReason.MODEL)


def _parse_model(fields: dict[str, Any], provider: Provider, path_model: PathModel | None) -> str | None:
    engine = path_model.model if path_model is not None else None
    model = fields.get("model", engine)
    if type(model) is not str and ((provider.needs_model and path_model is None) or "model" in fields):
        raise Bypass(BypassReason.MODEL)
    if engine is not None and model != engine:  # some servers use the path's, others the body's
        raise Bypass(BypassReason.MODEL)
    return model


def _parse_whole(
    body: bytes,
    fields: dict[str, Any],
    provider: Provider,
    path_model: PathModel | None,
    doubt: Bypass,
    *,
    members: int,
) -> EmbeddingRequest:
    """A request whose items are keyed by the whole body: only the same body is known to mean the same.

    Raises `Bypass` if even the same body may mean something else, because it refers to external content or controls the
    upstream's cache. Raises it also if the response could not be read.
    """
    _forbid_long_model(fields, path_model)
    finish(forbid_duplicate_names(members, fields, ItemKind.WHOLE))
    forbid_two_encodings(fields, provider)
    # All fields are looked at, because ``doubt`` is only the first of possibly several.
    has_undescribed, may_rewrite = find_undescribed(fields, provider)
    are_texts = doubt.reason in _INPUT_IS_KNOWN and not has_undescribed and fields.get("modality", "text") == "text"
    forbid_volatile(fields, provider, are_texts=are_texts)
    output, parameters = parse_whole_parameters(fields, provider, may_rewrite=may_rewrite)
    models = list(filter(None, (model_of(fields), path_model.model if path_model is not None else None)))
    if any(map(provider.is_multi_vector_model, models)):
        raise Bypass(BypassReason.MULTI_VECTOR)
    given = fields.get("input")
    is_one = count_items(fields) == 1 or any(map(provider.is_fused_model, models))
    return EmbeddingRequest(
        model=models[0] if models else None,
        kind=ItemKind.WHOLE,
        items=[given] if is_one or type(given) is not list else given,
        encoding=output.encoding,
        packed=output.packed,
        parameters=parameters,
        fields=fields,
        body=body,
        doubt=doubt,
        reads_base64=output.encoding is Encoding.BASE64 or not may_rewrite,
    )


def is_equivalent(body: bytes, primary: Provider, fallback: Provider, *, model: str | None) -> bool:
    """Whether an accepted request means the same at ``fallback`` as at ``primary``.

    ``model`` is the fallback's name of the model; None: the same name.
    """
    fields = parse_object(body)
    renamed = fields if model is None else {**fields, "model": model}
    try:
        first, second = parse_request(body, fields, primary), parse_request(body, renamed, fallback)
    except Bypass:
        return False
    if first.is_keyed_whole or second.is_keyed_whole:
        return False  # its meaning is not known at both
    return first._replace(model=second.model, fields=renamed) == second


def memory_bytes(request: EmbeddingRequest, counted: json_structure.Structure) -> int:
    """The memory that a request takes besides its body. ``counted`` is the structure of the body."""
    if request.kind is ItemKind.TEXT:
        items = sum(map(sys.getsizeof, request.items))
    elif request.kind is ItemKind.TOKENS:
        items = sum(map(sys.getsizeof, request.items)) + _TOKEN_BYTES * sum(map(len, request.items))
    else:
        return counted.objects_bytes
    rest_json = orjson.dumps({name: value for name, value in request.fields.items() if name != "input"})
    if len(rest_json) > _MAX_COUNTED_BYTES:
        return counted.objects_bytes
    rest = json_structure.of(rest_json)
    return min(counted.objects_bytes, items + sys.getsizeof(request.items) + rest.objects_bytes)


def reduced_body(request: EmbeddingRequest, items: list[Any]) -> bytes:
    """The request's body with ``items`` alone and every other field unchanged, except vLLM's ``request_id``: that
    identifies one call, and this request may need several."""
    rest = request.fields
    if "request_id" in rest and "request_id" not in request.parameters:
        rest = {name: value for name, value in rest.items() if name != "request_id"}
    return orjson.dumps({**rest, "input": items})
