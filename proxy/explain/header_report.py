"""The header fields of a request, and the credentials in its query, each with its class and why (pure)."""

from proxy.explain.http_request import HTTPRequest
from proxy.explain.report import FieldReport
from proxy.printable import printable
from proxy.protocol import query
from proxy.protocol.header_fields import document_of
from proxy.protocol.header_kinds import KINDS, FieldKind, Fields, Rule, is_proof, rule_of, why_not_neutral
from proxy.protocol.headers import AWS_SIGNATURE, is_for_key_holder, is_forwarded
from proxy.protocol.identities import Identity

# The proxy acts on these fields and forwards them. Their values are not part of a key.
_ACTED_ON = {
    "cache-control": "the proxy follows no-cache, no-store, max-age and only-if-cached",
    "content-encoding": "the proxy decompresses the body",
    "content-type": "the proxy reads JSON in UTF-8; anything else is relayed",
    "origin": "the proxy answers CORS for the page",
    "prefer": "the proxy follows wait and return=minimal",
    "priority": "the proxy orders requests by it while a rate limit makes them wait",
    "x-request-id": "the proxy's log and its response have it",
}
_SECRET_KINDS = frozenset({FieldKind.CREDENTIAL, FieldKind.ASSERTION, FieldKind.COOKIE, FieldKind.SIGNATURE})
# Values of other fields without an effect are not shown: nobody needs them, and they may be a session or a token.
_SHOWN = frozenset({*_ACTED_ON, "accept", "accept-encoding", "user-agent"})
_NOT_FORWARDED = "for this connection only, so the upstream does not see it"
_REPLACED = "the proxy sends its own key, so the upstream does not see this field"
_MAX_SHOWN = 60


def report_headers(
    request: HTTPRequest,
    identity: Identity | None,
    *,
    key_headers: frozenset[str],
    neutral_headers: frozenset[str],
    is_scope_shared: bool,
    owns_key: bool,
) -> list[FieldReport]:
    """``identity`` is the one that the request has upstream; None: it is not cached, so there is no key.

    ``neutral_headers`` are the operator's and the provider's. If ``is_scope_shared``, entries do not depend on the
    client's credentials. ``owns_key``: the proxy has the upstream's key and sends it in place of the client's.
    """
    reports = []
    for name, value in request.headers.items():
        lower = name.lower()
        if not is_forwarded(lower, request.headers):
            reports.append(FieldReport(name=name, value=None, kind="hop-by-hop", is_in_key=False, why=_NOT_FORWARDED))
            continue
        if owns_key and is_for_key_holder(lower):
            reports.append(FieldReport(name=name, value=None, kind="credential", is_in_key=False, why=_REPLACED))
            continue
        rule = rule_of(lower, key_headers, neutral_headers)
        if value.startswith(AWS_SIGNATURE):
            rule = Rule.SIGNATURE
        reports.append(_report(name, value, rule, identity, is_scope_shared=is_scope_shared))
    if identity is not None and ("content-type", "") in identity.vector_affecting:
        why = "absent, so the upstream decides how to read the body"
        reports.append(FieldReport(name="Content-Type", value="", kind="vector-affecting", is_in_key=True, why=why))
    return [*reports, *_in_query(request.target, identity, is_scope_shared=is_scope_shared)]


def _report(name: str, value: str, rule: Rule, identity: Identity | None, *, is_scope_shared: bool) -> FieldReport:
    lower, kind = name.lower(), KINDS[rule]
    fields = [] if identity is None else [*identity.vector_affecting, *_scope(identity, is_scope_shared)]
    is_in_key = (lower, value) in fields
    why: str = rule.value
    if rule is Rule.OTHER and lower in _ACTED_ON:
        why = _ACTED_ON[lower]
    elif kind in {FieldKind.CREDENTIAL, FieldKind.ASSERTION, FieldKind.COOKIE} and identity is not None:
        why += "; " + _of_scope(kind, is_in_key=is_in_key, is_scope_shared=is_scope_shared)
    is_secret = kind in _SECRET_KINDS or is_proof(lower) or why_not_neutral(lower) is not None
    return FieldReport(
        name=name,
        value=None if is_secret or (kind is None and lower not in _SHOWN) else shown(value),
        kind="neutral" if kind is None else kind.name.lower().replace("_", "-"),
        is_in_key=is_in_key,
        why=why,
        document=document_of(lower) if rule in {Rule.NEUTRAL, Rule.ASSERTION} else None,
    )


def _scope(identity: Identity, is_scope_shared: bool) -> Fields:
    return [] if is_scope_shared else identity.credentials


def _of_scope(kind: FieldKind | None, *, is_in_key: bool, is_scope_shared: bool) -> str:
    if is_in_key:
        return "entries belong to the identity that it names" if kind is FieldKind.ASSERTION else "entries belong to it"
    if is_scope_shared:
        return "all clients share one set of entries, so it only decides who is served"
    return "another field of the request proves who the client is, so this one does not count"


def _in_query(target: str, identity: Identity | None, *, is_scope_shared: bool) -> list[FieldReport]:
    found = query.credentials(target)
    is_in_key = identity is not None and not is_scope_shared
    return [
        FieldReport(
            name="?" + field.partition("=")[0],
            value=None,
            kind="credential",
            is_in_key=is_in_key,
            why="a field of the query with the name of a credential",
        )
        for _, field in found
    ]


def shown(value: str) -> str:
    """A value as one printable line, cut where it is long."""
    line = printable(value)
    return line if len(line) <= _MAX_SHOWN else line[:_MAX_SHOWN] + "…"
