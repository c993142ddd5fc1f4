"""Credentials among the query fields of request targets and URLs (pure).

Servers parse queries differently: some treat ``;`` like ``&``, some ignore case, some decode twice. A field is a
credential if any of them would treat it as one. Everything else stays unchanged, byte for byte.
"""

import re
from collections.abc import Callable
from urllib.parse import unquote_plus

from proxy.protocol import headers
from proxy.protocol.header_kinds import Fields

# No header field has this in its name, so none equals a query field.
_IN_QUERY = "?"
_FIELDS = re.compile(r"(^|[&;])([^&;]*)")
_SEPARATORS = re.compile(r"[^A-Za-z0-9]+")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # apiKey
_MAX_DECODINGS = 3
# Names of credentials that header fields do not have. `code`:
# https://learn.microsoft.com/azure/azure-functions/function-keys-how-to; `sig`:
# https://learn.microsoft.com/rest/api/storageservices/create-service-sas; `quotaUser`, `passwd`:
# https://cloud.google.com/apis/docs/system-parameters; `$httpHeaders`, which contain any header fields:
# goog.net.rpc.HttpCors of closure-library. Google's project also has a header field, with another name.
_QUERY_ONLY = re.compile(
    r"code|(.*-)?sig(nature)?|.*access-?key-?id|pass(wd|phrase)?|pwd|http-?headers|quota-?user|user-?project"
    r"|(access|account|app|auth|client|function|host|master|secret|user)key"
)
# Tokens for the next page of a list: Google's `pageToken`, AWS's `NextToken`, OData's `$skiptoken`.
_PAGE_TOKENS = re.compile(r".*(page|next|previous|continuation|start|starting|sync|skip|delta|cursor)-?token")


def credentials(target: str) -> Fields:
    """The credentials in a target or URL, for `proxy.protocol.identities.identity`: unchanged and in order.

    Each has the name that a header field with the same meaning would have, if that would be a credential.
    """
    query = target.partition("?")[2]
    if not query:
        return []
    fields = (field for _, field in _FIELDS.findall(query) if _is_credential(field))
    return [(_IN_QUERY + _credential_name(field), field) for field in fields]


def without_credentials(target: str) -> str:
    """A target or URL without credentials and without the account that pays."""
    return _without(target, _is_credential)


def keyed(url: str) -> str:
    """A URL as it is part of keys, beside the credentials.

    Credentials according to the rule for header fields are left out. A name like ``code`` may mean anything, so it
    stays.
    """
    return _without(url, lambda field: bool(_credential_name(field)))


def is_signed(target: str) -> bool:
    """Whether the query has an AWS signature (Signature Version 4), which covers the body, so no other can be sent."""
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


def _is_credential(field: str) -> bool:
    return any(headers.is_for_key_holder(name) or _QUERY_ONLY.fullmatch(name) for name in _names(field))


def _credential_name(field: str) -> str:
    """The name by which the rule for header fields classifies a field as a credential; "" if it does not."""
    return min(filter(headers.is_credential, _names(field)), default="")


def _names(field: str) -> set[str]:
    """The names that a field may have, in the form of header fields; none for one without a value, or a page token."""
    name, has_value, _ = field.partition("=")
    if not has_value:
        return set()
    for _ in range(_MAX_DECODINGS):
        name = unquote_plus(name)
    name = _SEPARATORS.sub("-", name).strip("-")
    names = {name.lower(), _WORDS.sub("-", name).lower()}
    return set() if any(map(_PAGE_TOKENS.fullmatch, names)) else names
