"""Input that may mean something else the next time is not cached."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from proxy.labels import BypassReason
from proxy.protocol.bypass import Bypass
from proxy.protocol.items import ItemKind
from proxy.protocol.providers import GENERIC
from proxy.protocol.volatile_input import forbid_references, forbid_remote_media, forbid_volatile

PROVIDER = replace(GENERIC, references=("asset://",), neutral=frozenset({"user"}))
URL = "https://example.com/a.png"


@contextmanager
def bypassed(reason: BypassReason, field: str = "") -> Iterator[None]:
    with pytest.raises(Bypass) as raised:
        yield
    assert (raised.value.reason, raised.value.field) == (reason, field)


def test_a_text_that_refers_to_a_stored_asset_is_not_cached() -> None:
    with bypassed(BypassReason.REMOTE_MEDIA):
        forbid_references(ItemKind.TEXT, ["plain", "see asset://1"], PROVIDER)


@pytest.mark.parametrize(
    ("kind", "items"),
    [(ItemKind.TEXT, ["plain", URL]), (ItemKind.TOKENS, [[1, 2]]), (ItemKind.OBJECT, [{"asset://": "1"}])],
)
def test_other_items_refer_to_nothing(kind: ItemKind, items: list[Any]) -> None:
    forbid_references(kind, items, PROVIDER)


def test_no_text_is_a_reference_where_the_provider_has_none() -> None:
    forbid_references(ItemKind.TEXT, ["see asset://1"], GENERIC)


@pytest.mark.parametrize("modality", ["image", "audio", ["text", "image"], None])
def test_texts_are_urls_where_another_modality_is_named(modality: object) -> None:
    with bypassed(BypassReason.REMOTE_MEDIA):
        forbid_remote_media(modality, ["data:image/png;base64,AA", URL])


def test_texts_are_texts_where_that_is_the_modality() -> None:
    forbid_remote_media("text", [URL])


def test_media_that_are_in_the_body_cannot_change() -> None:
    forbid_remote_media("image", ["data:image/png;base64,AA", "DATA:,", {"url": URL}, 3])


@pytest.mark.parametrize(
    "name",
    [
        "cache",
        "caching",
        "useCache",
        "nocache",
        "no-cache",
        "no_store",
        "no-store",
        "nostore",
        "force_refresh",
        "CACHE",
    ],
)
@pytest.mark.parametrize("value", [True, False, 0, "x", {}, []])
def test_a_field_that_controls_the_upstreams_cache_is_not_cached(name: str, value: object) -> None:
    with bypassed(BypassReason.UPSTREAM_CACHE, name):
        forbid_volatile({"model": "m", name: value}, PROVIDER, are_texts=True)


def test_such_a_field_is_found_inside_others() -> None:
    with bypassed(BypassReason.UPSTREAM_CACHE, "no-store"):
        forbid_volatile({"options": [{"deep": {"no-store": 1}}]}, PROVIDER, are_texts=True)


@pytest.mark.parametrize("fields", [{"user": "https://e/asset://1"}, {"cache": None}, {"store": True}, {"cash": 1}])
def test_neutral_null_and_other_fields_change_nothing(fields: dict[str, Any]) -> None:
    forbid_volatile(fields, PROVIDER, are_texts=False)


@pytest.mark.parametrize("url", [URL, "  ftp://host/x", "//host/x", "s3://bucket", "File:///x", "git+ssh://host"])
@pytest.mark.parametrize("are_texts", [True, False])
def test_a_url_is_fetched_in_any_field_but_a_text(url: str, *, are_texts: bool) -> None:
    for value in (url, ["x", url], {"name": [url]}):
        with bypassed(BypassReason.REMOTE_MEDIA, "name" if isinstance(value, dict) else "image"):
            forbid_volatile({"image": value}, PROVIDER, are_texts=are_texts)


@pytest.mark.parametrize("value", [URL, [URL], ["x", [URL]]])
def test_a_url_among_texts_is_a_text(value: object) -> None:
    forbid_volatile({"input": value}, PROVIDER, are_texts=True)
    with bypassed(BypassReason.REMOTE_MEDIA, "input"):
        forbid_volatile({"input": value}, PROVIDER, are_texts=False)


def test_a_url_inside_an_object_among_texts_is_no_text() -> None:
    with bypassed(BypassReason.REMOTE_MEDIA, "url"):
        forbid_volatile({"input": ["x", {"url": URL}]}, PROVIDER, are_texts=True)


def test_a_reference_among_texts_is_a_reference() -> None:
    with bypassed(BypassReason.REMOTE_MEDIA, "input"):
        forbid_volatile({"input": ["see asset://1"]}, PROVIDER, are_texts=True)
    with bypassed(BypassReason.REMOTE_MEDIA, "url"):
        forbid_volatile({"input": [{"url": "x asset://1"}]}, PROVIDER, are_texts=True)


@pytest.mark.parametrize("value", ["a/b", "1://x", "x:/y", "see https://example.com", 3, True])
def test_what_is_no_url_is_a_value(value: object) -> None:
    forbid_volatile({"image": value}, PROVIDER, are_texts=False)
