"""How a request was understood, as far as it may be shown."""

from proxy.embeddings.reader import BypassedRequest
from proxy.fetch.request import ClientRequest
from proxy.ledger.cause import Cause
from proxy.protocol.bypass import Bypass
from proxy.protocol.directives import NO_DIRECTIVES, Directives
from proxy.protocol.header_kinds import Fields
from proxy.telemetry.recent_request import RequestDetail
from proxy.upstream.router import Origin

_MAX_NAMES, _MAX_NAME = 16, 64
_NO_FIELDS: Fields = []


def detail_of(read: ClientRequest | BypassedRequest) -> RequestDetail:
    if isinstance(read, BypassedRequest):
        return _detail(read.origin, "nothing", read.bypass)
    doubt, identity = read.parsed.doubt, read.identity
    keyed = "items" if doubt is None else "body"
    return _detail(
        read.origin, keyed, doubt, identity.credentials, identity.vector_affecting, directives=read.directives
    )


def _detail(
    origin: Origin,
    keyed: str,
    doubt: Bypass | None,
    credentials: Fields = _NO_FIELDS,
    vector_affecting: Fields = _NO_FIELDS,
    *,
    directives: Directives = NO_DIRECTIVES,
) -> RequestDetail:
    return RequestDetail(
        upstream=origin.name,
        provider=origin.provider.name,
        keyed=keyed,
        reason=None if doubt is None else doubt.reason.value,
        field=None if doubt is None else Cause.of(doubt.reason, doubt.field).field or None,
        credential_headers=_names(credentials),
        vector_headers=_names(vector_affecting),
        cache_control="" if directives is NO_DIRECTIVES else _written(directives),
    )


def _names(fields: Fields) -> tuple[str, ...]:
    return tuple([name[:_MAX_NAME] for name, _ in fields[:_MAX_NAMES]])


def _written(directives: Directives) -> str:
    given = {
        "no-cache": directives.no_cache,
        "no-store": directives.no_store,
        "only-if-cached": directives.only_if_cached,
        f"max-age={directives.max_age_s}": directives.max_age_s is not None,
    }
    return ", ".join(name for name, is_given in given.items() if is_given)
