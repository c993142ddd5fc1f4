"""What the proxy knows about one provider: a row of the table in `proxy.protocol.providers` (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from typing import NamedTuple

from proxy.protocol.memo import memoized

_MIB = 1024 * 1024
_MAX_NAME_CHARS = 256  # of a model whose match is cached
NO_LIMIT = 2**63 - 1
MAX_MERGED_ITEMS = 2048  # items of several requests in one call, where the provider documents no limit


class InputFormat(Enum):
    """A type that ``input`` can have."""

    TEXT = "text"
    TEXTS = "texts"
    TOKENS = "tokens"  # [1, 2, 3]: one item
    TOKEN_LISTS = "token lists"  # noqa: S105
    CONTENT = "content parts"  # OpenRouter: {"content": [{"type": "text", …}, {"type": "image_url", …}]}
    MEDIA = "media objects"  # Jina: {"text": …}, {"image": …}


FLOATS = frozenset({"float", "base64"})
INTEGERS = frozenset({"int8", "uint8", "binary", "ubinary"})
TEXTS = frozenset({InputFormat.TEXT, InputFormat.TEXTS})
TOKENS = TEXTS | {InputFormat.TOKENS, InputFormat.TOKEN_LISTS}
# Late-interaction models: Infinity's ColBERT, ColPali, ColQwen and ColIdefics, and models built like them.
_MULTI_VECTOR = ("*colbert*", "*colpali*", "*colqwen*", "*colidefics*", "*colsmol*", "*colembed*")
# A LiteLLM gateway reports how many other models it tried (https://docs.litellm.ai/docs/proxy/reliability).
LITELLM_FALLBACK = {"x-litellm-attempted-fallbacks": "[1-9]*"}


class Limits(NamedTuple):
    """The largest call that a provider accepts. The defaults are OpenAI's."""

    items: int = 2048
    tokens: int = 300_000
    bytes: int = 32 * _MIB

    def __str__(self) -> str:
        items = "any number of items" if self.items >= NO_LIMIT else f"{self.items:,} items"
        return f"{items}, {self.tokens:,} tokens, {self.bytes:,} bytes a call"


_OPENAI_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A row. A request with a body field that is in none of the row's classes can't be keyed item by item.

    ``model`` and ``input`` have meanings of their own and are in no class.
    """

    name: str
    base_url: str | None = None  # as an SDK takes it; None: every customer has another
    path: str = "/embeddings"  # after the base URL
    auth: str = "Authorization: Bearer"  # where the API key goes
    inputs: frozenset[InputFormat] = TOKENS
    key: frozenset[str] = frozenset()  # changes the vector of each item alike, so its value is in every item's key
    neutral: frozenset[str] = frozenset({"user"})  # does not change the vector
    # Header fields, in lower case, that do not change it either, although their names sound as if they did.
    neutral_headers: frozenset[str] = frozenset()
    # Makes an item's vector depend on the other items, or gives it several; name -> the one value that doesn't.
    cross_item: Mapping[str, object] = field(default_factory=dict)
    # Selects how the vector is written; name -> the documented values among float, base64 and the integer types. The
    # integer types are other numbers, so they are in the key.
    encoding: Mapping[str, frozenset[str]] = field(default_factory=lambda: {"encoding_format": FLOATS})
    packs_base64: bool = False  # base64 of an integer type contains its bytes; elsewhere such base64 is not understood
    # Numbers are the shortest text of a float32, so vectors that came as base64 are written like that as well. At other
    # providers they are the shortest text of a float64.
    uses_shortest_floats: bool = False
    responses_have_id: bool = False  # the provider's own SDK rejects responses without `id`
    # Selects how the vector is written in ways that the proxy can't reproduce; name -> the one value that it can.
    fixed: Mapping[str, object] = field(default_factory=dict)
    limits: Limits = _OPENAI_LIMITS
    needs_model: bool = True
    required_fields: Mapping[str, object] = field(default_factory=dict)  # further ones -> an example value
    accepts_openai_sdk: bool = True  # accepts requests as OpenAI's SDKs send them
    # Models that make one vector of all the items of a call, or may.
    fused_models: tuple[str, ...] = ("*gemini-embedding-2*",)
    # Models that make several vectors of an item. Their base64 can't be told from that of one long vector.
    multi_vector_models: tuple[str, ...] = _MULTI_VECTOR
    references: tuple[str, ...] = ()  # substrings that mark a text as a reference to a stored asset
    accepts_null: bool = False  # null is the same as absent, in fields of class cross-item too
    # Response header fields that report a fallback to another model, or a changed text; name -> pattern of the value.
    fallback_markers: Mapping[str, str] = field(default_factory=lambda: LITELLM_FALLBACK)
    # Paths of the cached route besides the provider's own. Omitted where the server has another API at that path.
    aliases: tuple[str, ...] = ("/v1", "/api/v1", "/api", "")
    # Prefixes under which clients reach all other routes of the base URL; omitted likewise.
    prefixes: tuple[str, ...] = ("/v1", "/api/v1")
    has_deployments: bool = False  # Azure: /openai/deployments/NAME/embeddings is the cached route too

    def reports_fallback(self, headers: Mapping[str, str]) -> bool:
        """Whether a response with these fields is another model's, or to a changed text."""
        return any(fnmatchcase(headers.get(name, ""), pattern) for name, pattern in self.fallback_markers.items())

    def is_fused_model(self, model: str | None) -> bool:
        """Whether ``model`` makes one vector of all the items of a call, or may."""
        return model is not None and matches_model(model, self.fused_models)

    def is_multi_vector_model(self, model: str) -> bool:
        """Whether ``model`` makes several vectors of an item."""
        return matches_model(model, self.multi_vector_models)


@memoized(max_length=_MAX_NAME_CHARS)
def matches_model(model: str, patterns: tuple[str, ...]) -> bool:
    """Whether the name of a model matches one of ``patterns``, ignoring case."""
    return any(fnmatchcase(model.lower(), pattern.lower()) for pattern in patterns)
