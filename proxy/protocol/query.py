"""Credentials among the query fields of request targets and URLs (pure).

Servers disagree on how a query is read: some take ``;`` for ``&``, some ignore case, some decode twice. A field counts
as a credential if any of them would take it for one. Everything else stays as it was sent, to the byte.
"""

import re
from collections.abc import Callable
from urllib.parse import unquote_plus

from proxy.protocol import headers

# No header field has such a name, so none is like a query field.
_IN_QUERY = "?"
_FIELDS = re.compile(r"(^|[&;])([^&;]*)")
_SEPARATORS = re.compile(r"[^A-Za-z0-9]+")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # apiKey
_MAX_DECODINGS = 3
# What header fields are not called. `code`: https://learn.microsoft.com/azure/azure-functions/function-keys-how-to;
# `sig`: https://learn.microsoft.com/rest/api/storageservices/create-service-sas; `quotaUser`, `passwd`:
# https://cloud.google.com/apis/docs/system-parameters; `$httpHeaders`, which are any header fields: closure-library's
# goog.net.rpc.HttpCors. Google's project has a header field too, by another name.
_QUERY_ONLY = re.compile(
    r"code|(.*-)?sig(nature)?|.*access-?key-?id|pass(wd|phrase)?|pwd|http-?headers|quota-?user|user-?project"
    r"|(access|account|app|auth|client|function|host|master|secret|user)key"
)
# Places in a list, by which the next page is asked for: Google's `pageToken`, AWS's `NextToken`, OData's `$skiptoken`.
_PAGES = re.compile(r".*(page|next|previous|continuation|start|starting|sync|skip|delta|cursor)-?token")


def credentials(target: str) -> list[tuple[str, str]]:
    """The fields of a target or URL that say who asks, as they were sent and in their order, for `headers.identity`;
    before each what a header field would be called, if that were a credential."""
    query = target.partition("?")[2]
    if not query:
        return []
    fields = (field for _, field in _FIELDS.findall(query) if _says_who_asks(field))
    return [(_IN_QUERY + _credential_name(field), field) for field in fields]


def without_credentials(target: str) -> str:
    """A target or URL without the fields that say who asks, or who pays."""
    return _without(target, _says_who_asks)


def keyed(url: str) -> str:
    """A URL as it counts in keys, beside the credentials.

    What by the rule for header fields is a credential is left out. A name like ``code`` may be anything, so it stays.
    """
    return _without(url, lambda field: bool(_credential_name(field)))


def is_signed(target: str) -> bool:
    """Whether the query signs the body, as AWS has it (Signature Version 4), so that no other body may be sent."""
    return headers.AWS_SIGNATURE in target


def _without(target: str, is_dropped: Callable[[str], bool]) -> str:
    path, _, query = target.partition("?")
    if not query:
        return target
    fields = _FIELDS.findall(query)
    kept = [(separator, field) for separator, field in fields if not is_dropped(field)]
    if len(kept) == len(fields):
        return target
    rest = "".join(separator + field for separator, field in kept)
    rest = rest[1:] if kept and kept[0][0] else rest
    return f"{path}?{rest}" if rest else path


def _says_who_asks(field: str) -> bool:
    return any(headers.is_for_key_holder(name) or _QUERY_ONLY.fullmatch(name) for name in _names(field))


def _credential_name(field: str) -> str:
    """By which header fields' rule knows a field for a credential; "" if it does not."""
    return min(filter(headers.is_credential, _names(field)), default="")


def _names(field: str) -> set[str]:
    """What a field may be called, as header fields are called; nothing for one without a value, or for a page."""
    name, has_value, _ = field.partition("=")
    if not has_value:
        return set()
    for _ in range(_MAX_DECODINGS):
        name = unquote_plus(name)
    name = _SEPARATORS.sub("-", name).strip("-")
    names = {name.lower(), _WORDS.sub("-", name).lower()}
    return set() if any(map(_PAGES.fullmatch, names)) else names
