"""What a header field of a request means to a cache of vectors (pure).

`proxy.protocol.header_fields` has the fields whose meaning is documented. Providers and gateways document no complete
list of their fields, so the others are classified by their names: a field that is wrongly part of the key costs hits, a
field that is wrongly left out serves another model's vectors or another client's entries.
"""

import re
from enum import Enum
from functools import lru_cache

from proxy.protocol.header_fields import ASSERTIONS, GATEWAY_PREFIXES, NEUTRAL, SECRETS, SIGNATURES, VECTOR_AFFECTING
from proxy.protocol.memo import Memoized, memoized

Fields = list[tuple[str, str]]  # names in lower case and values, in the order of the request or by name

_MAX_NAME_CHARS = 128  # of a field whose kind is cached


class FieldKind(Enum):
    """A field that is of no kind is neutral."""

    CREDENTIAL = 1  # identifies the client
    ASSERTION = 2  # identifies the client, according to a proxy in front that signs or renews it frequently
    VECTOR_AFFECTING = 3  # selects what computes the vector, or may
    COOKIE = 4
    SIGNATURE = 5  # covers the exact bytes of the body


class Rule(Enum):
    """What decides the kind of a field, in words. `classifier` applies them in this order."""

    SIGNATURE = "it vouches for the exact bytes of the body, so no other body can be sent with it"
    KEY_HEADERS = "--key-headers names it"
    NEUTRAL_HEADERS = "the operator or the provider's row says that it does not change the vector"
    NEUTRAL = "documented as a field of tracing, delivery or accounting"
    ASSERTION = "a proxy in front identifies the client by it, and renews it frequently"
    SELECTOR = "documented to select what computes the vector"
    COOKIE = "a cookie identifies the client where nothing else proves who it is"
    CREDENTIAL = "its name is that of a credential"
    GATEWAY = "a gateway's fields may select the model or change the text"
    ROUTING = "by its name it may select a model, a provider or a region"
    OTHER = "nothing in its name suggests that it changes the vector or identifies the client"


KINDS = {
    Rule.SIGNATURE: FieldKind.SIGNATURE,
    Rule.KEY_HEADERS: FieldKind.VECTOR_AFFECTING,
    Rule.NEUTRAL_HEADERS: None,
    Rule.NEUTRAL: None,
    Rule.ASSERTION: FieldKind.ASSERTION,
    Rule.SELECTOR: FieldKind.VECTOR_AFFECTING,
    Rule.COOKIE: FieldKind.COOKIE,
    Rule.CREDENTIAL: FieldKind.CREDENTIAL,
    Rule.GATEWAY: FieldKind.VECTOR_AFFECTING,
    Rule.ROUTING: FieldKind.VECTOR_AFFECTING,
    Rule.OTHER: None,
}

# Azure, Envoy and many gateways route by a model in a header field, LiteLLM by tags, Helicone by a base URL, others by
# metadata.
_ROUTING = re.compile(
    r"(.*[-_])?(model|deployment|provider|target|backend|endpoint|base(-url)?|route|routing|region|tags|metadata"
    r"|fallbacks?)([-_].*)?"
)
# Providers and gateways identify callers by many fields (Authorization, api-key, x-goog-api-key, x-litellm-api-key,
# x-auth-token, x-forwarded-user, …).
_CREDENTIAL = re.compile(
    r"auth(?!or($|[-_]))|(^|[-_])(api|subscription)?-?key$|token$|secret|credential|password|jwt|assertion|oidc|principal"
    r"|(forwarded|remote)-(user|email|groups|preferred-username)$|(client|ssl|tls)-(client|cert)|tenant|consumer"
    r"|(^|[-_])(vk|pat)$"
)

# Credentials that prove the client's identity. Any client can write the value of the others (`x-tenant-id`,
# `x-auth-request-user`), so beside those the proof may be a cookie.
_PROOF = re.compile(r"(auth|authorization|key|token|secret|password|jwt|credential|assertion|vk|pat)$")
# Fields that must not be declared neutral, because every client would see the entries of all others. A word in the name
# is enough here.
_AUTHENTICATES = re.compile(
    r"(.*[-_])?(authorization|auth|auth-token|api[-_]?key|subscription-?key|secret|password|virtual-key|vk|pat)|cookie"
)


@lru_cache
def classifier(
    key_headers: frozenset[str] = frozenset(), neutral_headers: frozenset[str] = frozenset()
) -> Memoized[FieldKind | None]:
    """A function that returns the kind of a field by its name in any case. The operator's names are in lower case.

    `Rule` has the order of precedence.
    """

    @memoized(max_length=_MAX_NAME_CHARS)
    def kind_of(name: str) -> FieldKind | None:
        return KINDS[rule_of(name, key_headers, neutral_headers)]

    return kind_of


def rule_of(
    name: str, key_headers: frozenset[str] = frozenset(), neutral_headers: frozenset[str] = frozenset()
) -> Rule:
    """What decides the kind of a field, by its name in any case."""
    name = name.lower()
    if name in SIGNATURES:
        return Rule.SIGNATURE
    if name in key_headers:
        return Rule.KEY_HEADERS
    if name in neutral_headers:
        return Rule.NEUTRAL_HEADERS
    return Rule.NEUTRAL if name in NEUTRAL else _documented_rule(name) or _rule_by_name(name)


def _documented_rule(name: str) -> Rule | None:
    if is_assertion(name):
        return Rule.ASSERTION
    # Portkey takes other providers' keys in fields of its own, which select the model together with the others.
    if name in VECTOR_AFFECTING and name not in SECRETS:
        return Rule.SELECTOR
    return Rule.COOKIE if name == "cookie" else None


def _rule_by_name(name: str) -> Rule:
    if _CREDENTIAL.search(name):
        return Rule.CREDENTIAL
    if name.startswith(GATEWAY_PREFIXES):
        return Rule.GATEWAY
    return Rule.ROUTING if _ROUTING.fullmatch(name) else Rule.OTHER


def is_assertion(name: str) -> bool:
    """Whether a field of this name, in lower case, is an assertion of a proxy in front."""
    return name in ASSERTIONS


def is_secret(name: str) -> bool:
    """Whether a field of this name, in lower case, contains the secret by which an upstream authenticates a client."""
    return name in SECRETS


def is_proof(name: str) -> bool:
    """Whether a credential of this name, in lower case, proves the client's identity and does not only state it."""
    return is_assertion(name) or _PROOF.search(name) is not None


def why_not_neutral(name: str) -> str | None:
    """The reason why a field of this name, in lower case, can't be declared neutral; None if it can."""
    if name in SIGNATURES:
        return "vouches for the body, so an upstream would refuse any other body with it"
    if name in SECRETS or _AUTHENTICATES.fullmatch(name):
        return (
            "authenticates clients, so entries would be shared across credentials;"
            " to share them among the credentials that the upstream accepts say --share all"
        )
    return None
