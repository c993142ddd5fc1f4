"""The items of a request: texts, token lists or objects (pure)."""

import re
from collections.abc import Callable
from enum import Enum
from typing import Any

from proxy.labels import BypassReason
from proxy.protocol.bypass import Bypass
from proxy.protocol.json_numbers import MAX_EXACT_INTEGER
from proxy.protocol.provider import InputFormat
from proxy.steps import Steps

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


class ItemKind(Enum):
    """What the items of a request are. All items of one request are of one kind. The values are part of cache keys."""

    TEXT = b"t"
    TOKENS = b"i"
    OBJECT = b"o"
    WHOLE = b"w"  # an item can't be interpreted alone: the key of each contains the whole body


def parse_items(given: Any, accepted: frozenset[InputFormat]) -> Steps[tuple[ItemKind, list[Any]]]:
    """The items of an ``input``, in order. Raises `Bypass`."""
    input_format, items = _parse_format(given)
    if input_format not in accepted:
        raise Bypass(BypassReason.INPUT_FORM)
    if input_format is InputFormat.TEXT or input_format is InputFormat.TEXTS:
        if "" in items:
            raise Bypass(BypassReason.EMPTY_ITEM)
        return ItemKind.TEXT, items
    kind, require = _CHECKS[input_format]
    for item in items:
        require(item)
        yield
    return kind, items


def _parse_format(given: Any) -> tuple[InputFormat, list[Any]]:
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
    raise Bypass(BypassReason.INPUT_FORM)


def _require_tokens(tokens: list[Any]) -> None:
    if not tokens:
        raise Bypass(BypassReason.EMPTY_ITEM)
    if set(map(type, tokens)) != {int}:
        raise Bypass(BypassReason.INPUT_FORM)
    if min(tokens) < 0 or max(tokens) > MAX_EXACT_INTEGER:
        raise Bypass(BypassReason.TOKEN_RANGE)


def _require_content(item: dict[str, Any]) -> None:
    """OpenRouter's multimodal item, ``{"content": [part, …]}``, whose parts contain all of their data.

    https://openrouter.ai/docs/api-reference/embeddings: a part is ``{"type":"text","text":…}`` or
    ``{"type":"image_url","image_url":{"url":…}}``. The image at a remote URL can change, so only data URLs are
    accepted.
    """
    parts = item.get("content")
    if len(item) != 1 or type(parts) is not list or not parts:
        raise Bypass(BypassReason.INPUT_FORM)
    for part in parts:
        match part:
            case {"type": "text", "text": str(), **rest} if not rest:
                continue
            case {"type": "image_url", "image_url": {"url": str(url), **more}, **rest} if not (rest or more):
                require_data_url(url)
            case _:
                raise Bypass(BypassReason.INPUT_FORM)


def _require_media(item: dict[str, Any]) -> None:
    """Jina's ``{"text": …}`` or ``{"image": …}``, the image as a data URL or plain base64.

    https://api.jina.ai/docs: a PDF gets one vector or one for each page, so it is not accepted.
    """
    match item:
        case {"text": str(text), **rest} if text and not rest:
            return
        case {"image": str(image), **rest} if image and not rest:
            if not _BASE64.fullmatch(image):
                require_data_url(image)
        case _:
            raise Bypass(BypassReason.INPUT_FORM)


_CHECKS: dict[InputFormat, tuple[ItemKind, Callable[[Any], None]]] = {
    InputFormat.TOKENS: (ItemKind.TOKENS, _require_tokens),
    InputFormat.TOKEN_LISTS: (ItemKind.TOKENS, _require_tokens),
    InputFormat.CONTENT: (ItemKind.OBJECT, _require_content),
    InputFormat.MEDIA: (ItemKind.OBJECT, _require_media),
}


def require_data_url(url: str) -> None:
    """Raises `Bypass` for a URL that does not contain its data (RFC 2397)."""
    if url[:5].lower() != "data:":
        raise Bypass(BypassReason.REMOTE_MEDIA)
