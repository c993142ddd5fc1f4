"""Why a request is not cached (pure)."""

from collections.abc import Mapping
from typing import NamedTuple

from proxy.labels import BypassReason


class Explanation(NamedTuple):
    """``why`` a reason keeps a request from being keyed item by item, and what would change that."""

    why: str
    remedy: str


_DESCRIBE = (
    "if it changes each item's vector alike, add it to key of [providers.NAME] in the configuration file; if it"
    " changes no vector, add it to neutral"
)
EXPLANATIONS: Mapping[BypassReason, Explanation] = {
    BypassReason.CONTENT_ENCODING: Explanation(
        "the body's compression can't be read", "send the body as gzip or deflate, or uncompressed"
    ),
    BypassReason.CONTENT_TYPE: Explanation(
        "the body is not declared as JSON in UTF-8", "send Content-Type: application/json"
    ),
    BypassReason.CROSS_ITEM: Explanation(
        "an item's vector may depend on the other items of the request",
        "leave the field out, or send its harmless value; with a model that fuses items, send one item a request",
    ),
    BypassReason.DUPLICATE_KEY: Explanation(
        "a name appears twice, and servers differ in which value counts", "send each field once"
    ),
    BypassReason.EMPTY_ITEM: Explanation(
        "an item is empty, and upstreams refuse that or pad it", "leave empty items out"
    ),
    BypassReason.ENCODING: Explanation(
        "the vectors are asked for in a form that the proxy can't reproduce",
        "ask for a form that the provider's row has (embedding-proxy providers)",
    ),
    BypassReason.INEXACT_NUMBER: Explanation(
        "JSON parsers do not agree on so large a number", "send numbers below 2**53"
    ),
    BypassReason.INPUT_FORM: Explanation(
        "input has a form that the provider's row does not have",
        "send a form that the row has (embedding-proxy providers): as a list of texts",
    ),
    BypassReason.LIST_PARAMETER: Explanation(
        "a list may apply to the items by position", "send a single value for all items"
    ),
    BypassReason.MODEL: Explanation(
        "the model is missing or is no string, or body and path name different ones", "name the model in the body"
    ),
    BypassReason.MULTI_VECTOR: Explanation(
        "the model makes several vectors of an item",
        "nothing, unless the row's multi_vector_models is wrong for this model ([providers.NAME])",
    ),
    BypassReason.NOT_AN_OBJECT: Explanation("the body is no JSON object", "send a JSON object"),
    BypassReason.NOT_JSON: Explanation(
        "the body is not valid JSON", "send valid JSON, without NaN and lone surrogates"
    ),
    BypassReason.OTHER_ROUTE: Explanation(
        "the model's upstream does not have this route", "send the request to the route of the model's provider"
    ),
    BypassReason.REMOTE_MEDIA: Explanation(
        "a URL or a stored asset may have other content the next time", "send the content itself, as a data URL"
    ),
    BypassReason.SIGNED_BODY: Explanation(
        "a signature covers the body, so no part of it can be sent", "let the proxy hold the key (--upstream-key-env)"
    ),
    BypassReason.STREAM: Explanation("a streamed response is asked for", "send stream: false, or leave it out"),
    BypassReason.TOKEN_RANGE: Explanation(
        "a token is negative or has no exact value in JSON parsers", "send token IDs from 0 to 2**53"
    ),
    BypassReason.TOO_COMPLEX: Explanation("parsing the body would take too long", "send fewer items in a request"),
    BypassReason.TOO_DEEP: Explanation("the body is nested too deeply", "send flatter JSON"),
    BypassReason.TOO_MANY_ITEMS: Explanation("the request has too many items", "send fewer items in a request"),
    BypassReason.UNKNOWN_FIELD: Explanation("the provider's row does not describe the field", _DESCRIBE),
    BypassReason.UPSTREAM_CACHE: Explanation(
        "the field controls a cache of the upstream", "leave the field out; the proxy's own is Cache-Control"
    ),
}


class Bypass(Exception):
    """The proxy can't be certain what a request means: it is relayed unchanged, and nothing is stored.

    ``field`` is the name, as the client wrote it, of the field that ``reason`` is about.
    """

    def __init__(self, reason: BypassReason, field: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
