"""Why a request can't be a hit, and what an operator can do about it (pure)."""

import re
from typing import NamedTuple

from proxy.labels import BypassReason

VARYING_HEADER, EXPIRING_TOKEN, WRONG_PATH = "varying-header", "expiring-token", "wrong-path"
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_AGENT = re.compile(r"[\w.+-]{1,40}(/[\w.+-]{1,24})?", re.ASCII)

# The remedy, by reason; {field} is the field's name, {provider} the name of the upstream's provider.
_REMEDIES: dict[str, str] = {
    VARYING_HEADER: "if it does not change the vector, set --neutral-headers {field}",
    EXPIRING_TOKEN: "set --share all, or give the proxy a key of its own (--upstream-key-env with --client-keys)",
    WRONG_PATH: "set the client's base URL to this proxy's /v1",
    BypassReason.UNKNOWN_FIELD: 'say what the field does: [providers.{provider}] neutral = ["{field}"], or key = […]',
    BypassReason.CONTENT_TYPE: "let the client send Content-Type: application/json",
    BypassReason.CONTENT_ENCODING: "let the client send its body uncompressed, or with gzip or deflate",
    BypassReason.CROSS_ITEM: "let the client send {field} without lists, or not at all",
    BypassReason.DUPLICATE_KEY: "let the client send each member of a JSON object once",
    BypassReason.EMPTY_ITEM: "let the client leave out empty texts",
    BypassReason.ENCODING: "let the client ask for an encoding that is listed in [providers.{provider}] encoding",
    BypassReason.INEXACT_NUMBER: "let the client send numbers below 2**53",
    BypassReason.INPUT_FORM: "let the client send input as a list of texts, or as embedding-proxy providers says",
    BypassReason.LIST_PARAMETER: "let the client send {field} as a single value for all items",
    BypassReason.MODEL: "let the client name the model in the body",
    BypassReason.MULTI_VECTOR: "if the model makes one vector an item, set [providers.{provider}] multi_vector_models",
    BypassReason.NOT_AN_OBJECT: "let the client send a JSON object",
    BypassReason.NOT_JSON: "let the client send valid JSON, without NaN and lone surrogates",
    BypassReason.OTHER_ROUTE: "let the client use the route of the model's provider",
    BypassReason.REMOTE_MEDIA: "let the client send the content itself, as a data URL",
    BypassReason.SIGNED_BODY: "let the client authenticate without signing the body",
    BypassReason.STREAM: "let the client leave out {field}",
    BypassReason.TOKEN_RANGE: "let the client send token IDs from 0 to 2**53",
    BypassReason.TOO_COMPLEX: "let the client send fewer items in a request",
    BypassReason.TOO_DEEP: "let the client send flatter JSON",
    BypassReason.TOO_MANY_ITEMS: "let the client send fewer items in a request",
    BypassReason.UPSTREAM_CACHE: "let the client leave out {field}",
}


class Cause(NamedTuple):
    """``reason`` is a `BypassReason` or one of the constants above. ``field`` is the field's name, or the path, that it
    is about. Both are safe to show."""

    reason: str
    field: str = ""

    @classmethod
    def of(cls, reason: str, field: str) -> "Cause":
        """A cause, without its ``field`` if that may be a client's text instead of a name."""
        return cls(reason, field if _FIELD.fullmatch(field) else "")

    def __str__(self) -> str:
        return self.reason if self.field in {"", self.reason} else f"{self.reason} {self.field}"

    def remedy(self, provider: str) -> str:
        found = _REMEDIES.get(self.reason)
        if found is None:
            return "see docs/clients.md for this reason"
        return found.format(field=self.field or "the field", provider=provider)


class Why(NamedTuple):
    """What is known of a request that was no hit: why it can't be cached item by item, and the client's program."""

    cause: Cause | None
    program: str  # "" if it is not known

    def fields(self) -> dict[str, str]:
        """As fields of a log line."""
        found = {} if self.cause is None else {"reason": self.cause.reason, "field": self.cause.field}
        return {name: value for name, value in (found | {"user_agent": self.program}).items() if value}


def agent_of(user_agent: str | None) -> str:
    """The first product of a ``User-Agent`` (RFC 9110 §10.1.5), if it is short and plain, as `OpenAI/Python`."""
    match = None if user_agent is None else _AGENT.match(user_agent)
    return "" if match is None else match[0]
