"""The special properties of each model of the reference upstream."""

from collections.abc import Mapping
from dataclasses import dataclass

FLAGGED = 246  # as gateways answer what succeeded and is flagged


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is peculiar to one model."""

    status: int = 200
    answers_as: str | None = None  # the name in its responses; None: as it was asked
    is_reversed: bool = False
    indices: str = "all"  # or "none", or "nonzero"
    has_extras: bool = False  # further fields in each datum
    has_echo: bool = False  # further fields beside the data, which quote the input
    list_refusal: int = 0  # the status for any list; 0: it takes lists
    max_items: int = 1000
    max_bytes: int = 1_000_000
    size_refusal: int = 413
    overload: int = 0  # the status of every response
    denies_guests: int = 0
    ignores_dimensions: bool = False
    ignores_encoding: bool = False
    is_queued: bool = False  # it promises the vectors for later


MODELS: Mapping[str, Model] = {
    "plain": Model(),
    "alias": Model(answers_as="alias-2026-01-01"),
    "reversed": Model(is_reversed=True),
    "without-index": Model(indices="none"),
    "without-zero": Model(indices="nonzero", is_reversed=True),
    "extras": Model(has_extras=True),
    "echo": Model(has_echo=True),
    "created": Model(status=201),
    "accepted": Model(status=202),
    "transformed": Model(status=203),
    "flagged": Model(status=FLAGGED),
    "queued": Model(status=202, is_queued=True),
    "no-lists-400": Model(list_refusal=400),
    "no-lists-500": Model(list_refusal=500),
    "three-items-400": Model(max_items=3, size_refusal=400),
    "three-items-413": Model(max_items=3),
    "three-items-500": Model(max_items=3, size_refusal=500),
    "small-bodies-413": Model(max_bytes=220),
    "busy-503": Model(overload=503),
    "busy-529": Model(overload=529),
    "vip-403": Model(denies_guests=403),
    "vip-404": Model(denies_guests=404),
    "any-length": Model(ignores_dimensions=True),
    "floats-only": Model(ignores_encoding=True),
}
