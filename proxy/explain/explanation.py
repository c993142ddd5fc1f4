"""Why the proxy handles a request as it does."""

from collections.abc import Mapping, Sequence
from typing import Any

from proxy.config.settings import Settings
from proxy.embeddings.reader import BypassedRequest
from proxy.explain.body_report import parameters_of, report_body
from proxy.explain.header_report import report_headers, shown
from proxy.explain.http_request import HTTPRequest
from proxy.explain.lookup_report import expected_outcome, report_items
from proxy.explain.report import Explanation, FieldReport, ItemReport, Keying, KeyReport
from proxy.fetch.request import ClientRequest
from proxy.ledger.cause import VARYING_HEADER, Cause
from proxy.protocol import query, request_body
from proxy.protocol.bypass import EXPLANATIONS, Bypass
from proxy.protocol.header_kinds import Rule, rule_of, why_not_neutral
from proxy.protocol.records import Record
from proxy.upstream import base_urls

_UNKNOWN_OUTCOME = "--store names the store to look in"
_GUESSED = frozenset({Rule.ROUTING, Rule.GATEWAY, Rule.CREDENTIAL})  # by the name alone


def explain(
    request: HTTPRequest,
    read: ClientRequest | BypassedRequest,
    settings: Settings,
    *,
    stored: Mapping[bytes, Record] | None,
    now_s: float,
) -> Explanation:
    """``read`` is what the proxy understands of ``request``. ``stored`` are the records of its items; None: no store
    was looked into. ``now_s`` is Unix time."""
    is_read = isinstance(read, ClientRequest)
    doubt = read.parsed.doubt if isinstance(read, ClientRequest) else read.bypass
    headers = report_headers(
        request,
        read.identity if isinstance(read, ClientRequest) else None,
        key_headers=settings.key_headers,
        neutral_headers=settings.neutral_headers | read.origin.neutral_headers,
        is_scope_shared=settings.shares_all or settings.owns_key,
        owns_key=settings.owns_key,
    )
    parsed = read.parsed if isinstance(read, ClientRequest) else None
    fields = parsed.fields if parsed is not None else _fields(request.body)
    outcome, why = _outcome(read, settings, stored, now_s)
    return Explanation(
        request=f"{request.method} {_shown_url(request.target)}",
        upstream=read.origin.name,
        provider=read.origin.provider.name,
        keyed=Keying.NOTHING if not is_read else Keying.ITEMS if doubt is None else Keying.WHOLE,
        reason=None if doubt is None else doubt.reason.value,
        field=shown(doubt.field) if doubt is not None and doubt.field else None,
        outcome=outcome,
        why=why,
        merging=_merging(read),
        headers=headers,
        body=report_body(fields, read.origin.provider, parsed),
        key=_key(read, headers, settings) if isinstance(read, ClientRequest) else None,
        items=_items(read, settings, stored, now_s) if isinstance(read, ClientRequest) else [],
        advice=_advice(doubt, headers, settings, read.origin.provider.name),
        notes=[*request.notes, *_notes(read, settings, outcome)],
    )


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return request_body.parse_object(body)
    except Bypass:
        return {}


def min_stored_at_s(read: ClientRequest, settings: Settings, now_s: float) -> float:
    """The Unix time before which an entry was stored too long ago for this request."""
    limits = [limit for limit in (settings.ttl_s, read.directives.max_age_s) if limit is not None]
    return now_s - min(limits) if limits else 0.0


def _outcome(
    read: ClientRequest | BypassedRequest, settings: Settings, stored: Mapping[bytes, Record] | None, now_s: float
) -> tuple[str | None, str]:
    if isinstance(read, BypassedRequest):
        return "BYPASS", f"{EXPLANATIONS[read.bypass.reason]}, so the request is relayed as it came"
    if stored is None:
        return None, _UNKNOWN_OUTCOME
    return expected_outcome(read, stored, min_stored_at_s=min_stored_at_s(read, settings, now_s))


def _items(
    read: ClientRequest, settings: Settings, stored: Mapping[bytes, Record] | None, now_s: float
) -> list[ItemReport]:
    return report_items(read, stored or {}, min_stored_at_s=min_stored_at_s(read, settings, now_s), now_s=now_s)


def _key(read: ClientRequest, headers: Sequence[FieldReport], settings: Settings) -> KeyReport:
    parsed = read.parsed
    return KeyReport(
        scope=_scope(headers, settings),
        scope_fingerprint=read.scope_fingerprint.hex(),
        url=_shown_url(query.keyed(read.url)),
        headers=sorted({name for name, _ in read.identity.vector_affecting}),
        model=parsed.model,
        parameters=parameters_of(parsed, read.origin.provider),
    )


def _scope(headers: Sequence[FieldReport], settings: Settings) -> str:
    if settings.owns_key:
        return "all clients: the proxy has the upstream's key"
    if settings.shares_all:
        return "all clients whose credential the upstream accepts (--share all)"
    names = [field.name for field in headers if field.is_in_key and field.kind != "vector-affecting"]
    return "the client's own " + ", ".join(names) if names else "all requests without a credential"


def _shown_url(url: str) -> str:
    """Without user information, and without all that may be a credential in the query."""
    address, mark, fields = query.without_credentials(url).partition("?")
    return base_urls.redacted(address) + mark + fields


def _merging(read: ClientRequest | BypassedRequest) -> str:
    if isinstance(read, BypassedRequest):
        return "never merged with other requests: it is relayed as it came"
    if read.spec.is_keyed_whole or read.origin.provider.is_fused_model(read.parsed.model):
        return "never merged with other requests: its items can't be told apart from the rest of it"
    if read.directives.no_cache or read.directives.no_store:
        return (
            "does not join the fetches of other requests (Cache-Control); its items may travel in one call with theirs"
        )
    return "joins fetches of the same items, and travels in one call with requests that differ only in their items"


def _advice(doubt: Bypass | None, headers: Sequence[FieldReport], settings: Settings, provider: str) -> list[str]:
    advice = []
    if doubt is not None:
        advice.append(Cause.of(doubt.reason, doubt.field).remedy(provider))
    for field in headers:
        rule = rule_of(field.name, settings.key_headers, settings.neutral_headers)
        is_guessed = rule in _GUESSED and why_not_neutral(field.name.lower()) is None
        if field.is_in_key and is_guessed:
            advice.append(Cause.of(VARYING_HEADER, field.name.lower()).remedy(provider))
    return list(dict.fromkeys(advice))


def _notes(read: ClientRequest | BypassedRequest, settings: Settings, outcome: str | None) -> list[str]:
    notes = []
    if settings.client_keys is not None:
        notes.append("whether --client-keys has the client's key was not checked")
    if isinstance(read, ClientRequest):
        if read.directives.no_store:
            notes.append("Cache-Control: no-store stores nothing of the response")
        if not settings.owns_key and outcome in {None, "HIT", "PARTIAL"}:
            notes.append(
                "stored items are served if the upstream has accepted the credential in the last"
                f" {settings.revalidate_s:g} s (--revalidate); if not, the proxy asks it for one item first"
            )
    return notes
