"""Input whose meaning can change between two requests with the same body (pure).

A URL can have other content the next time; a field can ask the upstream to compute again.
"""

import re
from typing import Any

from proxy.labels import BypassReason
from proxy.protocol.bypass import Bypass
from proxy.protocol.items import ItemKind, require_data_url
from proxy.protocol.provider import Provider

# A text that begins like this can be the URL of an image or a document.
_URL = re.compile(r"\s*([a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
# Names of fields that control the upstream's own cache: LiteLLM's `cache` and `caching`
# (https://docs.litellm.ai/docs/proxy/caching), `useCache`, `nocache`, `no-store` and similar ones.
_UPSTREAM_CACHE = re.compile(r"cach(e|ing)|no[_-]?store|refresh", re.IGNORECASE)


def forbid_references(kind: ItemKind, items: list[Any], provider: Provider) -> None:
    """Raises `Bypass` for texts that refer to an asset stored at ``provider``."""
    for mark in provider.references:
        if kind is ItemKind.TEXT and any(mark in item for item in items):
            raise Bypass(BypassReason.REMOTE_MEDIA)


def forbid_remote_media(modality: Any, items: list[Any]) -> None:
    """Raises `Bypass` for texts that are URLs, where ``modality`` says that texts are images or audio."""
    if modality == "text":
        return
    for item in items:
        if type(item) is str:
            require_data_url(item)


def forbid_volatile(fields: dict[str, Any], provider: Provider, *, are_texts: bool) -> None:
    """Raises `Bypass` for a body that may mean something else the next time, or that asks for a new computation.

    ``are_texts``: strings in ``input`` are certainly texts, so a URL among them is not fetched.
    """
    for name, value in fields.items():
        if name not in provider.neutral and value is not None:
            _forbid_volatile_value(name, value, provider.references, is_text=are_texts and name == "input")


def _forbid_volatile_value(name: str, value: Any, references: tuple[str, ...], *, is_text: bool = False) -> None:
    if _UPSTREAM_CACHE.search(name):
        raise Bypass(BypassReason.UPSTREAM_CACHE, name)
    if type(value) is str:
        if (not is_text and _URL.match(value)) or any(mark in value for mark in references):
            raise Bypass(BypassReason.REMOTE_MEDIA, name)
    elif type(value) is dict:
        for inner_name, inner in value.items():
            _forbid_volatile_value(inner_name, inner, references)
    elif type(value) is list:
        for inner in value:
            _forbid_volatile_value(name, inner, references, is_text=is_text)
