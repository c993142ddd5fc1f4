"""What an explanation consists of. It has no secrets and no texts, so that it can be shown to others (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Keying(StrEnum):
    ITEMS = "item by item"
    WHOLE = "whole body"
    NOTHING = "not cached"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldReport:
    """A header field, a credential in the query, or a field of the body. ``value`` is None if it may be a secret or a
    text; ``kind`` is its class."""

    name: str
    value: str | None
    kind: str
    is_in_key: bool
    why: str
    document: str | None = None  # where its meaning is documented


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReport:
    since: str  # ISO 8601, UTC
    age_s: int
    is_served: bool  # False: it is too old for this request
    model: str
    dimensions: int
    dtype: str
    tokens: int
    is_tokens_exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemReport:
    """An item of the input. ``size`` is in UTF-8 bytes, or tokens. ``stored`` is None if it is not, or not known."""

    position: int
    kind: str
    size: int
    key: str  # as the store has it, in hexadecimal
    stored: StoredReport | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReport:
    """What the items' keys have in common."""

    scope: str
    scope_fingerprint: str  # in hexadecimal, as records of the scope have it
    url: str  # without credentials
    headers: Sequence[str]  # names of the vector-affecting fields
    model: str | None
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """``outcome`` is HIT, PARTIAL, MISS or BYPASS; None if that depends on a store that was not looked into."""

    request: str
    upstream: str
    provider: str
    keyed: Keying
    reason: str | None  # of a request that is not keyed item by item
    field: str | None  # that the reason is about
    outcome: str | None
    why: str
    merging: str
    headers: Sequence[FieldReport]
    body: Sequence[FieldReport]
    key: KeyReport | None
    items: Sequence[ItemReport]
    advice: Sequence[str]
    notes: Sequence[str]
