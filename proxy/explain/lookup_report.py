"""What a store has of a request's items, and what the proxy would make of it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from proxy.cache.entry import Entry
from proxy.embeddings.lookup import Lookup, count_model_versions
from proxy.explain.report import ItemReport, StoredReport
from proxy.fetch.request import ClientRequest
from proxy.protocol import tokens
from proxy.protocol.items import ItemKind
from proxy.protocol.records import Record

_KINDS = {ItemKind.TEXT: "text", ItemKind.TOKENS: "tokens", ItemKind.OBJECT: "object", ItemKind.WHOLE: "whole body"}


class Expected(NamedTuple):
    outcome: str
    why: str


def report_items(
    request: ClientRequest, stored: Mapping[bytes, Record], *, min_stored_at_s: float, now_s: float
) -> list[ItemReport]:
    """``stored`` has the records of those items that have one."""
    kind = request.parsed.kind
    reports = []
    for position, (key, item) in enumerate(zip(request.spec.keys, request.parsed.items, strict=True)):
        record = stored.get(key)
        reports.append(
            ItemReport(
                position=position,
                kind=_KINDS[kind],
                size=tokens.weight(kind, item),
                key=key.hex(),
                stored=None if record is None else _stored(record, min_stored_at_s, now_s),
            )
        )
    return reports


def _stored(record: Record, min_stored_at_s: float, now_s: float) -> StoredReport:
    return StoredReport(
        since=datetime.fromtimestamp(record.stored_at_s, UTC).isoformat(timespec="seconds"),
        age_s=max(0, int(now_s - record.stored_at_s)),
        is_served=record.stored_at_s >= min_stored_at_s,
        model=record.model,
        dimensions=record.vector.dimensions,
        dtype=record.vector.dtype.name.lower(),
        tokens=record.tokens,
        is_tokens_exact=record.tokens_exact,
    )


def expected_outcome(request: ClientRequest, stored: Mapping[bytes, Record], *, min_stored_at_s: float) -> Expected:
    """What the proxy would respond, as far as it depends on the store."""
    keys = request.spec.keys
    if request.directives.no_cache:
        return Expected("MISS", "Cache-Control: no-cache fetches every item again, and replaces what is stored")
    entries = {key: Entry.of(record) for key, record in stored.items() if record.stored_at_s >= min_stored_at_s}
    found = Lookup.of(keys, entries)
    if not found.missing:
        if count_model_versions(found.entries) > 1:
            return Expected("MISS", "the entries are of different model versions, so all items are fetched again")
        return Expected("HIT", "all items are stored")
    old = len(stored) - len(entries)
    aged = f"; {old} more are older than --ttl or max-age allows" if old else ""
    if request.directives.only_if_cached:
        return Expected("504", f"only-if-cached, and {len(found.missing)} distinct items are not stored{aged}")
    if not entries or request.spec.is_keyed_whole:
        return Expected("MISS", f"none of the items is stored{aged}" if not entries else f"not all are stored{aged}")
    return Expected("PARTIAL", f"{len(entries)} of {len(set(keys))} distinct items are stored{aged}")
