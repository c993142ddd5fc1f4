"""OpenAI's embeddings JSON ↔ typed requests (pure).

https://platform.openai.com/docs/api-reference/embeddings
"""

import json
import re
import sys
from collections.abc import Callable
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import orjson

from proxy.protocol import parts, structure
from proxy.protocol.memo import remembered
from proxy.protocol.parts import JSONParseError
from proxy.protocol.providers import InputFormat, Provider
from proxy.protocol.targets import PathModel
from proxy.protocol.vectors import DType

_LARGEST_EXACT_INTEGER = 2**53
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_ESCAPED_COLON = re.compile(rb"\\u003[aA]")
_MAX_NAME = 256  # of a model that is remembered
_MAX_DEPTH = 32  # of the JSON; what writes it again has limits of its own
# Of a request. More take the proxy too long in one go, and no provider takes so many.
MAX_ITEMS = 16_384
_TOKEN_BYTES = 32  # an integer object
_MAX_TOLERATED = 64 * 1024  # bytes of what is no JSON in which a model is looked for
# The integer types a request can name. `binary` packs eight dimensions into each number.
_PACKED = {
    "int8": DType.INT8_PACKED,
    "binary": DType.INT8_PACKED,
    "uint8": DType.UINT8_PACKED,
    "ubinary": DType.UINT8_PACKED,
}
# What keeps a request from being keyed item by item, but not as a whole.
_CERTAIN_AS_A_WHOLE = frozenset({"cross-item", "empty-item", "input-form", "list-parameter", "model", "unknown-field"})
# Doubts other than these are about what the input is, so that a text may be the address of an image.
_NOT_ABOUT_INPUT = frozenset({"cross-item", "empty-item", "model"})
# What begins so may be the address of an image or a document, which can change.
_ADDRESS = re.compile(r"\s*([a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
# LiteLLM's `cache` and `caching` (https://docs.litellm.ai/docs/proxy/caching), `useCache`, `nocache`, `no-store` and
# whatever else asks an upstream's own cache for something, as far as its name tells.
_UPSTREAM_CACHE = re.compile(r"cach(e|ing)|no[_-]?store|refresh", re.IGNORECASE)


class Bypass(Exception):
    """The proxy can't be certain what a request means: it goes upstream as it came and nothing is stored.

    ``reason`` is one of a few fixed words, fit for a metric label; ``field`` is the client's own word for what it is
    about.
    """

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field


class Encoding(Enum):
    FLOAT = "float"
    BASE64 = "base64"


class ItemKind(Enum):
    """What the items of a request are; all of one request are of one kind. The values go into keys."""

    TEXT = b"t"
    TOKENS = b"i"
    OBJECT = b"o"
    WHOLE = b"w"  # the items mean nothing alone: the whole body is in the key of each


class EmbeddingRequest(NamedTuple):  # a frozen dataclass takes three times as long to make
    """A request that can be cached. ``items`` are in input order: str, list[int] or dict, by ``kind``; of a request
    that is keyed as a whole they are whatever came, and ``doubt`` says what keeps it from being keyed item by item.
    """

    model: str | None  # of the body, or else of the path; None: absent, where the provider allows that
    kind: ItemKind
    items: list[Any]
    encoding: Encoding
    packed: DType | None  # the integer type that was asked for by name
    parameters: dict[str, Any]  # the fields that change the vector, as given: null is not absent
    fields: dict[str, Any]  # the whole body
    body: bytes  # the same, as it came
    doubt: "Bypass | None" = None
    # False: base64 may be of other numbers than float32 (vLLM's `embed_dtype`) or of several vectors (Jina's
    # `return_multivector`), and this request does not ask for base64.
    reads_base64: bool = True

    @property
    def is_keyed_whole(self) -> bool:
        return self.kind is ItemKind.WHOLE


def parse_object(body: bytes) -> dict[str, Any]:
    """A request body as JSON. Raises `Bypass`."""
    if len(body) > parts.LARGE_BYTES:
        return _read_parts(body)
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:  # bad UTF-8, lone surrogates and NaN among them
        raise Bypass("not-json") from None
    if type(fields) is not dict:
        raise Bypass("not-an-object")
    return fields


def _read_parts(body: bytes) -> dict[str, Any]:
    """The same for a large body, whose items are parsed one by one."""
    try:
        given = parts.members(body)
        fields: dict[str, Any] = {}
        for name, part in given.items():
            items = parts.elements(part, max_elements=MAX_ITEMS) if name == "input" else None
            fields[name] = parts.value(part) if items is None else list(items)
    except JSONParseError as unparsed:
        raise Bypass(unparsed.reason) from None
    return fields


def model_of(fields: dict[str, Any]) -> str | None:
    """The model that a body names."""
    model = fields.get("model")
    return model if type(model) is str else None


def count_items(fields: dict[str, Any]) -> int:
    """How many items a body seems to have, whatever they are."""
    given = fields.get("input")
    return len(given) if type(given) is list and given and type(given[0]) is not int else 1


def peek_model(body: bytes) -> str | None:
    """The model that a body names, read more tolerantly than anything else here: it only says who is asked."""
    try:
        model = parts.value(parts.members(body)["model"])
    except (JSONParseError, KeyError):
        return _model_in_lenient_json(body) if len(body) <= _MAX_TOLERATED else None
    return model if type(model) is str else None


def _model_in_lenient_json(body: bytes) -> str | None:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return model_of(fields) if type(fields) is dict else None


def is_equivalent(body: bytes, here: Provider, there: Provider, *, model: str | None) -> bool:
    """Whether a request that was understood means at ``there``, by whose name it asks for ``model`` (None: the same),
    what it means at ``here``."""
    fields = parse_object(body)
    renamed = fields if model is None else {**fields, "model": model}
    try:
        first, second = parse_request(body, fields, here), parse_request(body, renamed, there)
    except Bypass:
        return False
    if first.is_keyed_whole or second.is_keyed_whole:
        return False  # nobody knows what it means at either
    return first._replace(model=second.model, fields=renamed) == second


def parse_request(
    body: bytes, fields: dict[str, Any], provider: Provider, named: PathModel | None = None
) -> EmbeddingRequest:
    """Understand a request to ``provider``; ``fields`` is `parse_object` of ``body``, ``named`` what the path names.

    What is uncertain for an item may be certain for the body, and then the request is keyed as a whole. Raises `Bypass`
    where not even that can be said.
    """
    _forbid_many_items(fields)
    try:
        return _item_by_item(body, fields, provider, named)
    except Bypass as doubt:
        if doubt.reason not in _CERTAIN_AS_A_WHOLE:
            raise
        return _whole(body, fields, provider, named, doubt)


def _item_by_item(body: bytes, fields: dict[str, Any], provider: Provider, named: PathModel | None) -> EmbeddingRequest:
    engine = named.model if named is not None else None
    model = fields.get("model", engine)
    if type(model) is not str and ((provider.needs_model and named is None) or "model" in fields):
        raise Bypass("model")
    if engine is not None and model != engine:  # some servers go by the path, others by the body
        raise Bypass("model")
    kind, items = _items(fields.get("input"), provider.inputs)
    _forbid_duplicate_keys(body, fields, kind, items)
    _forbid_two_names(fields, provider)
    written, parameters = _parameters(fields, provider)
    if "modality" in parameters:
        _forbid_remote(parameters["modality"], items)
    _forbid_references(kind, items, provider)
    if type(model) is str:
        if len(items) > 1 and is_fused(model, provider):
            raise Bypass("cross-item")
        if matches_model(model, provider.multi_vector_models):
            raise Bypass("multi-vector")
    return EmbeddingRequest(
        model=model,
        kind=kind,
        items=items,
        encoding=written.encoding,
        packed=written.packed,
        parameters=parameters,
        fields=fields,
        body=body,
    )


def _whole(
    body: bytes, fields: dict[str, Any], provider: Provider, named: PathModel | None, doubt: Bypass
) -> EmbeddingRequest:
    """A request of which only the same body is known to mean the same.

    Raises `Bypass` where even the same body may not: it refers to something outside it, or wants no cache; or where the
    response could not be read.
    """
    _forbid_duplicate_keys(body, fields, ItemKind.WHOLE, [])
    _forbid_two_names(fields, provider)
    has_unknown, may_rewrite = _unsettled(fields, provider)
    are_texts = doubt.reason in _NOT_ABOUT_INPUT and not has_unknown and fields.get("modality", "text") == "text"
    _forbid_volatile(fields, provider, are_texts=are_texts)
    written, parameters = _written(fields, provider), {}
    for name, value in fields.items():
        is_model = name == "model" and type(value) is str  # any other value is a parameter like others
        if is_model or name in provider.encoding or _is_neutral(name, value, provider):
            continue
        if not _is_exact(value):
            raise Bypass("inexact-number", name)
        parameters[name] = value
    if written.packed is not None or may_rewrite:
        parameters |= {name: fields[name] for name in provider.encoding if fields.get(name) not in (None, "float")}
    models = list(filter(None, (model_of(fields), named.model if named is not None else None)))
    if any(matches_model(model, provider.multi_vector_models) for model in models):
        raise Bypass("multi-vector")
    given = fields.get("input")
    is_one = count_items(fields) == 1 or any(is_fused(model, provider) for model in models)
    return EmbeddingRequest(
        model=models[0] if models else None,
        kind=ItemKind.WHOLE,
        items=[given] if is_one or type(given) is not list else given,
        encoding=written.encoding,
        packed=written.packed,
        parameters=parameters,
        fields=fields,
        body=body,
        doubt=doubt,
        reads_base64=written.encoding is Encoding.BASE64 or not may_rewrite,
    )


def _unsettled(fields: dict[str, Any], provider: Provider) -> tuple[bool, bool]:
    """Whether there are fields that nobody described, and whether any may change how vectors are written.

    All fields are looked at: the doubt is only the first of possibly several.
    """
    doubts = set()
    for name, value in fields.items():
        if name in {"model", "input"} or name in provider.key or name in provider.encoding:
            continue
        if not _is_neutral(name, value, provider):
            try:
                _require_harmless(name, value, provider)
            except Bypass as doubt:
                doubts.add(doubt.reason)
    return "unknown-field" in doubts, bool(doubts)


def _forbid_volatile(fields: dict[str, Any], provider: Provider, *, are_texts: bool) -> None:
    """Raises `Bypass` for what may be another thing when it is asked again, or is to be computed again.

    ``are_texts``: the texts in the input are that, and no addresses of something.
    """
    for name, value in fields.items():
        if name not in provider.neutral and value is not None:
            _forbid_volatile_value(name, value, provider.references, is_text=are_texts and name == "input")


def _forbid_volatile_value(name: str, value: Any, references: tuple[str, ...], *, is_text: bool = False) -> None:
    """``is_text``: a text in ``value`` is that, and no address of something."""
    if _UPSTREAM_CACHE.search(name):
        raise Bypass("upstream-cache", name)
    if type(value) is str:
        if (not is_text and _ADDRESS.match(value)) or any(mark in value for mark in references):
            raise Bypass("remote-media", name)
    elif type(value) is dict:
        for inner_name, inner in value.items():
            _forbid_volatile_value(inner_name, inner, references)
    elif type(value) is list:
        for inner in value:
            _forbid_volatile_value(name, inner, references, is_text=is_text)


def _items(given: Any, accepted: frozenset[InputFormat]) -> tuple[ItemKind, list[Any]]:
    form, items = _form(given)
    if form not in accepted:
        raise Bypass("input-form")
    if form is InputFormat.TEXT or form is InputFormat.TEXTS:
        if "" in items:
            raise Bypass("empty-item")
        return ItemKind.TEXT, items
    kind, require = _CHECKS[form]
    for item in items:
        require(item)
    return kind, items


def _form(given: Any) -> tuple[InputFormat, list[Any]]:
    """What an ``input`` is, by what its items are, and these."""
    if type(given) is str:
        return InputFormat.TEXT, [given]
    if type(given) is list:
        types = set(map(type, given))
        if types == {str}:
            return InputFormat.TEXTS, given
        if types == {list}:
            return InputFormat.TOKEN_LISTS, given
        if types == {int}:
            return InputFormat.TOKENS, [given]
        if types == {dict}:
            return InputFormat.CONTENT if "content" in given[0] else InputFormat.MEDIA, given
    raise Bypass("input-form")


def _require_tokens(tokens: list[Any]) -> None:
    if not tokens:
        raise Bypass("empty-item")
    if set(map(type, tokens)) != {int}:
        raise Bypass("input-form")
    if min(tokens) < 0 or max(tokens) > _LARGEST_EXACT_INTEGER:
        raise Bypass("token-range")


def _forbid_references(kind: ItemKind, items: list[Any], provider: Provider) -> None:
    for mark in provider.references:
        if kind is ItemKind.TEXT and any(mark in item for item in items):
            raise Bypass("remote-media")


def _require_content(item: dict[str, Any]) -> None:
    """OpenRouter's multimodal item, ``{"content": [part, …]}``, of parts that carry all they mean.

    https://openrouter.ai/docs/api-reference/embeddings: a part is ``{"type":"text","text":…}`` or
    ``{"type":"image_url","image_url":{"url":…}}``. What a remote URL shows can change, so only data URLs will do.
    """
    parts = item.get("content")
    if len(item) != 1 or type(parts) is not list or not parts:
        raise Bypass("input-form")
    for part in parts:
        match part:
            case {"type": "text", "text": str(), **rest} if not rest:
                continue
            case {"type": "image_url", "image_url": {"url": str(url), **more}, **rest} if not (rest or more):
                _require_data_url(url)
            case _:
                raise Bypass("input-form")


def _require_media(item: dict[str, Any]) -> None:
    """Jina's ``{"text": …}`` or ``{"image": …}``, the image as a data URL or plain base64.

    https://api.jina.ai/docs: of a PDF there may be one vector or one a page, so it is not for us.
    """
    match item:
        case {"text": str(text), **rest} if text and not rest:
            return
        case {"image": str(image), **rest} if image and not rest:
            if not _BASE64.fullmatch(image):
                _require_data_url(image)
        case _:
            raise Bypass("input-form")


_CHECKS: dict[InputFormat, tuple[ItemKind, Callable[[Any], None]]] = {
    InputFormat.TOKENS: (ItemKind.TOKENS, _require_tokens),
    InputFormat.TOKEN_LISTS: (ItemKind.TOKENS, _require_tokens),
    InputFormat.CONTENT: (ItemKind.OBJECT, _require_content),
    InputFormat.MEDIA: (ItemKind.OBJECT, _require_media),
}


def _forbid_remote(modality: Any, items: list[Any]) -> None:
    """Where a text stands for an image or a sound it may be the address of one."""
    if modality == "text":
        return
    for item in items:
        if type(item) is str:
            _require_data_url(item)


def _require_data_url(url: str) -> None:
    if url[:5].lower() != "data:":
        raise Bypass("remote-media")


class _Written(NamedTuple):
    """How vectors are to be written."""

    encoding: Encoding = Encoding.FLOAT
    packed: DType | None = None


_PLAIN = _Written()


def _forbid_many_items(fields: dict[str, Any]) -> None:
    if count_items(fields) > MAX_ITEMS:
        raise Bypass("too-many-items")


def _forbid_two_names(fields: dict[str, Any], provider: Provider) -> None:
    """Which of two names of one field counts is the provider's secret."""
    if len(provider.encoding) > 1:
        chosen = [values for name, values in provider.encoding.items() if fields.get(name) is not None]
        if len(chosen) > len(set(chosen)):
            raise Bypass("duplicate-key")


def _written(fields: dict[str, Any], provider: Provider) -> _Written:
    """What the fields of class encoding ask for; null is absent."""
    written = _PLAIN
    for name, accepted in provider.encoding.items():
        value = fields.get(name)
        if value is None:
            continue
        if type(value) is not str or value not in accepted:
            raise Bypass("encoding", name)
        if value == "base64":
            written = written._replace(encoding=Encoding.BASE64)
        elif value != "float":
            written = written._replace(packed=_PACKED[value])
    for name, value in provider.fixed.items():
        if fields.get(name) not in (None, value):
            raise Bypass("encoding", name)
    if written.packed is not None and written.encoding is Encoding.BASE64 and not provider.packs_base64:
        raise Bypass("encoding")
    return written


def _is_neutral(name: str, value: Any, provider: Provider) -> bool:
    """Whether a field changes nothing about a vector. ``stream`` is the one that OpenAI's other routes have; here an
    SDK may send its default."""
    if name == "stream":
        if value:
            raise Bypass("stream", name)
        return value is None or value is False
    return name in provider.neutral or (name in provider.fixed and value in (None, provider.fixed[name]))


def _parameters(fields: dict[str, Any], provider: Provider) -> tuple[_Written, dict[str, Any]]:
    """What the request says besides model and input: how to write the vectors, and what changes them."""
    written = (
        _PLAIN if provider.encoding.keys().isdisjoint(fields) and not provider.fixed else _written(fields, provider)
    )
    parameters = {}
    for name, value in fields.items():
        if name in {"model", "input"} or _is_neutral(name, value, provider):
            continue
        if name in provider.encoding:
            if written.packed is not None and value in _PACKED:
                parameters[name] = value
        elif name in provider.key:
            _require_whole(name, value)
            parameters[name] = value
        else:
            _require_harmless(name, value, provider)
    return written, parameters


def _require_whole(name: str, value: Any) -> None:
    if type(value) is list:
        # A list may be matched to the items by position (NVIDIA's `modality`), so a part of it means nothing.
        raise Bypass("list-parameter", name)
    if not _is_exact(value):
        raise Bypass("inexact-number", name)


def _require_harmless(name: str, value: Any, provider: Provider) -> None:
    if name not in provider.cross_item:
        raise Bypass("unknown-field", name)
    harmless = provider.cross_item[name]
    if not (type(value) is type(harmless) and value == harmless) and not (value is None and provider.accepts_null):
        raise Bypass("cross-item", name)


def is_fused(model: str | None, provider: Provider) -> bool:
    """Whether ``model`` makes one vector of all the items of a call, or may."""
    return model is not None and matches_model(model, provider.fused_models)


@remembered(max_length=_MAX_NAME)
def matches_model(model: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of ``patterns`` fits the name of a model, whatever the case of either."""
    return any(fnmatchcase(model.lower(), pattern.lower()) for pattern in patterns)


def _is_exact(value: Any) -> bool:
    """False if a number in ``value`` may have lost digits: integers past 64 bits are parsed as floats."""
    if type(value) is dict:
        return all(map(_is_exact, value.values()))
    if type(value) is list:
        return all(map(_is_exact, value))
    return type(value) is not float or abs(value) < _LARGEST_EXACT_INTEGER


def _forbid_duplicate_keys(body: bytes, fields: dict[str, Any], kind: ItemKind, items: list[Any]) -> None:
    """The parser keeps the last of two equal keys in silence; an upstream may keep the first.

    Each pair of the document has one colon, and every other colon is inside a string. If the raw body has just as many
    as the parsed value accounts for, then no pair was dropped; unless an escaped colon made up for it, which has
    ``\\u003a`` in the raw body. Where that leaves doubt, only colons outside strings are counted, which takes longer.
    """
    accounted = len(fields)
    for name, value in fields.items():
        accounted += name.count(":")
        if name != "input" or kind is ItemKind.WHOLE:
            accounted += _colons(value)
    if kind is ItemKind.TEXT:
        for text in items:
            accounted += text.count(":")
    elif kind is ItemKind.OBJECT:
        accounted += _colons(items)
    is_in_doubt = body.count(b":") != accounted or _ESCAPED_COLON.search(body)
    if is_in_doubt and structure.of(body).members != _members(fields):
        raise Bypass("duplicate-key")


def _colons(value: Any, depth: int = _MAX_DEPTH) -> int:
    if type(value) is str:
        return value.count(":")
    if type(value) not in {dict, list}:
        return 0
    if depth == 0:
        raise Bypass("too-deep")
    if type(value) is dict:
        return sum(1 + name.count(":") + _colons(inner, depth - 1) for name, inner in value.items())
    return sum(_colons(inner, depth - 1) for inner in value)


def _members(value: Any, depth: int = _MAX_DEPTH + 1) -> int:
    """How many members its objects have in all."""
    if type(value) not in {dict, list}:
        return 0
    if depth == 0:
        raise Bypass("too-deep")
    if type(value) is dict:
        return len(value) + sum(_members(inner, depth - 1) for inner in value.values())
    return sum(_members(inner, depth - 1) for inner in value)


def memory_bytes(request: EmbeddingRequest, counted: structure.Structure) -> int:
    """What a request takes in memory besides its body, whose structure has been ``counted``."""
    if request.kind is ItemKind.TEXT:
        items = sum(map(sys.getsizeof, request.items))
    elif request.kind is ItemKind.TOKENS:
        items = sum(map(sys.getsizeof, request.items)) + _TOKEN_BYTES * sum(map(len, request.items))
    else:
        return counted.objects_bytes
    rest = structure.of(orjson.dumps({name: value for name, value in request.fields.items() if name != "input"}))
    return min(counted.objects_bytes, items + sys.getsizeof(request.items) + rest.objects_bytes)


def reduced_body(request: EmbeddingRequest, items: list[Any]) -> bytes:
    """The request's body asking for ``items`` alone, every other field as it was; but for vLLM's ``request_id``, which
    is for one call, and of this request there may be several."""
    rest = request.fields
    if "request_id" in rest and "request_id" not in request.parameters:
        rest = {name: value for name, value in rest.items() if name != "request_id"}
    return orjson.dumps({**rest, "input": items})


def renamed_body(body: bytes, model: str) -> bytes:
    """A body that was understood, asking another name of the same model."""
    return orjson.dumps({**orjson.loads(body), "model": model})
