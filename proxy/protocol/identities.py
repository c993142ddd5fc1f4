"""Which header fields identify a client, and which others affect vectors (pure)."""

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from proxy.protocol.header_kinds import FieldKind, Fields, classifier, is_proof, is_secret
from proxy.protocol.headers import AWS_SIGNATURE, Headers, end_to_end

_USUAL_CONNECTION = frozenset({"keep-alive", "Keep-Alive", "close"})  # names no field


class Identity(NamedTuple):
    """The header fields that an item's key depends on. ``is_signed``: they sign the body, so no other can be sent."""

    credentials: Fields
    vector_affecting: Fields
    is_signed: bool


def identity(
    headers: Headers,
    key_headers: frozenset[str] = frozenset(),
    neutral_headers: frozenset[str] = frozenset(),
    *,
    in_query: Sequence[tuple[str, str]] = (),
) -> Identity:
    """The credentials and the vector-affecting fields of a request. ``key_headers`` and ``neutral_headers`` are the
    operator's names, in lower case; ``in_query`` are the credentials in the request's target (`proxy.protocol.query`).

    The fields are lists of (name in lower case, value), sorted by name; repeated fields keep their order. Proxies in
    front renew assertions and cookies frequently. Therefore assertions are credentials only if there is no secret, and
    cookies only if nothing else proves the client's identity.
    """
    connections = headers.getall("Connection", ())
    if connections and (len(connections) > 1 or connections[0] not in _USUAL_CONNECTION):
        headers = end_to_end(headers)  # fields that the upstream does not see do not count
    kind_of = classifier(key_headers, neutral_headers)
    relevant = [(kind, name.lower(), value) for name, value in headers.items() if (kind := kind_of(name))]
    credentials = [*_fields(relevant, FieldKind.CREDENTIAL), *in_query]
    if not any(is_secret(name) for name, _ in credentials):
        credentials += _fields(relevant, FieldKind.ASSERTION)
        if not any(is_proof(name) for name, _ in credentials):
            credentials += _fields(relevant, FieldKind.COOKIE)
        credentials.sort(key=itemgetter(0))
    is_signed = any(kind is FieldKind.SIGNATURE or value.startswith(AWS_SIGNATURE) for kind, _, value in relevant)
    return Identity(credentials, _fields(relevant, FieldKind.VECTOR_AFFECTING), is_signed)


def _fields(relevant: list[tuple[FieldKind, str, str]], wanted: FieldKind) -> Fields:
    found = [(name, value) for kind, name, value in relevant if kind is wanted]
    return sorted(found, key=itemgetter(0)) if len(found) > 1 else found
