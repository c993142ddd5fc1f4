"""Why a request is not cached (pure)."""

from collections.abc import Mapping

from proxy.labels import BypassReason

# Why a reason keeps a request from being keyed item by item; `proxy.ledger.cause` has what would change that.
EXPLANATIONS: Mapping[BypassReason, str] = {
    BypassReason.CONTENT_ENCODING: "the body's compression can't be read",
    BypassReason.CONTENT_TYPE: "the body is not declared as JSON in UTF-8",
    BypassReason.CROSS_ITEM: "an item's vector may depend on the other items of the request",
    BypassReason.DUPLICATE_KEY: "a name appears twice, and servers differ in which value counts",
    BypassReason.EMPTY_ITEM: "an item is empty, and upstreams refuse that or pad it",
    BypassReason.ENCODING: "the vectors are asked for in a form that the proxy can't reproduce",
    BypassReason.INEXACT_NUMBER: "JSON parsers do not agree on so large a number",
    BypassReason.INPUT_FORM: "input has a form that the provider's row does not have",
    BypassReason.LIST_PARAMETER: "a list may apply to the items by position",
    BypassReason.MODEL: "the model is missing, is no string or too long, or body and path name different ones",
    BypassReason.MULTI_VECTOR: "the model makes several vectors of an item",
    BypassReason.NOT_AN_OBJECT: "the body is no JSON object",
    BypassReason.NOT_JSON: "the body is not valid JSON",
    BypassReason.OTHER_ROUTE: "the model's upstream does not have this route",
    BypassReason.REMOTE_MEDIA: "a URL or a stored asset may have other content the next time",
    BypassReason.SIGNED_BODY: "a signature covers the body, so no part of it can be sent",
    BypassReason.STREAM: "a streamed response is asked for",
    BypassReason.TOKEN_RANGE: "a token is negative, or too large for JSON parsers to agree on",
    BypassReason.TOO_COMPLEX: "parsing the body would take too long",
    BypassReason.TOO_DEEP: "the body is nested too deeply",
    BypassReason.TOO_MANY_ITEMS: "the request has too many items",
    BypassReason.UNKNOWN_FIELD: "the provider's row does not describe the field",
    BypassReason.UPSTREAM_CACHE: "the field controls a cache of the upstream",
}


class Bypass(Exception):
    """The proxy can't be certain what a request means: it is relayed unchanged, and nothing is stored.

    ``field`` is the name, as the client wrote it, of the field that ``reason`` is about.
    """

    def __init__(self, reason: BypassReason, field: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
