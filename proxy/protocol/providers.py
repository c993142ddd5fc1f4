"""What each provider documents: where it is, what it takes, and what the fields of a request mean there (pure).

``embedding-proxy providers`` prints this table; a configuration file adds rows to it and changes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

_MIB = 1024 * 1024


class InputFormat(Enum):
    """What ``input`` can be."""

    TEXT = "text"
    TEXTS = "texts"
    TOKENS = "tokens"  # [1, 2, 3]: one item
    TOKEN_LISTS = "token lists"  # noqa: S105
    CONTENT = "content parts"  # OpenRouter: {"content": [{"type": "text", …}, {"type": "image_url", …}]}
    MEDIA = "media objects"  # Jina: {"text": …}, {"image": …}


_FLOATS = frozenset({"float", "base64"})
_INTEGERS = frozenset({"int8", "uint8", "binary", "ubinary"})
_TEXTS = frozenset({InputFormat.TEXT, InputFormat.TEXTS})
_TOKENS = _TEXTS | {InputFormat.TOKENS, InputFormat.TOKEN_LISTS}


# Late interaction: Infinity's own ColBERT, ColPali, ColQwen and ColIdefics, and what else is built so.
_MULTI_VECTOR = ("*colbert*", "*colpali*", "*colqwen*", "*colidefics*", "*colsmol*", "*colembed*")
# A LiteLLM gateway tells how many other models it had to try (https://docs.litellm.ai/docs/proxy/reliability).
_STAND_INS = {"x-litellm-attempted-fallbacks": "[1-9]*"}


_NO_LIMIT = 2**63 - 1
MAX_MERGED_ITEMS = 2048  # items of several requests in one call, where the provider documents no limit


class Limits(NamedTuple):
    """What one call may hold; OpenAI's own where a provider documents none."""

    items: int = 2048
    tokens: int = 300_000
    bytes: int = 32 * _MIB

    def __str__(self) -> str:
        items = "any number of items" if self.items >= _NO_LIMIT else f"{self.items:,} items"
        return f"{items}, {self.tokens:,} tokens, {self.bytes:,} bytes a call"


_USUAL = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A row. A field of the request body that stands in none of its classes makes a request bypass.

    ``model`` and ``input`` have meanings of their own and stand in no class.
    """

    name: str
    base_url: str | None = None  # as one would give it to an SDK; None: everyone has another
    path: str = "/embeddings"  # after the base URL
    auth: str = "Authorization: Bearer"  # where the key goes
    inputs: frozenset[InputFormat] = _TOKENS
    key: frozenset[str] = frozenset()  # changes the vector of each item alike, so its value is in every item's key
    neutral: frozenset[str] = frozenset({"user"})  # changes nothing about the vector
    # Header fields, in lower case, that change nothing either, though they sound like a credential or like routing.
    neutral_headers: frozenset[str] = frozenset()
    # Lets an item's vector depend on the other items, or gives it several; name -> the one value that doesn't.
    cross_item: Mapping[str, object] = field(default_factory=dict)
    # Chooses how the vector is written; name -> the values that it documents, of float, base64 and the integer types,
    # which are other numbers and therefore in the key.
    encoding: Mapping[str, frozenset[str]] = field(default_factory=lambda: {"encoding_format": _FLOATS})
    packs_base64: bool = False  # base64 of an integer type is its bytes; where it isn't, it is nothing we know
    # Floats are the shortest text of a float32, so what came as base64 is written so, too; elsewhere of a float64.
    uses_shortest_floats: bool = False
    responses_have_id: bool = False  # a field without which its own clients take no answer
    # Likewise, in ways that the proxy can't write itself; name -> the one value that it can.
    fixed: Mapping[str, object] = field(default_factory=dict)
    limits: Limits = _USUAL
    needs_model: bool = True
    required_fields: Mapping[str, object] = field(default_factory=dict)  # fields without which it refuses -> an example
    accepts_openai_sdk: bool = True  # requests as OpenAI's own clients send them
    # Models that make one vector of all the items of a call, or may.
    fused_models: tuple[str, ...] = ("*gemini-embedding-2*",)
    # Models that make several vectors of an item: base64 of these can't be told from one long vector.
    multi_vector_models: tuple[str, ...] = _MULTI_VECTOR
    references: tuple[str, ...] = ()  # what in a text stands for something that is not in the request
    accepts_null: bool = False  # in fields of class cross-item, too, null is the same as absent
    # The answer's header fields that say that another model was asked, or about another text; name -> pattern.
    fallback_markers: Mapping[str, str] = field(default_factory=lambda: _STAND_INS)
    # Where clients reach the embeddings on this proxy, besides its own path. No path where the server has another API.
    aliases: tuple[str, ...] = ("/v1", "/api/v1", "/api", "")
    # Where they reach everything else at the base URL; likewise.
    prefixes: tuple[str, ...] = ("/v1", "/api/v1")
    has_deployments: bool = False  # Azure: /openai/deployments/NAME/embeddings is the cached route too


# For an upstream about which nothing is known: what OpenAI documents, and fields that mean the same wherever they are.
GENERIC = Provider(
    name="generic",
    limits=Limits(items=_NO_LIMIT),
    has_deployments=True,
    key=frozenset(
        {
            "dimensions",
            "input_type",
            "modality",
            "normalize",
            "normalized",
            "output_dimension",
            "prompt_template",
            "provider",
            "task",
            "truncate",
            "truncation",
        }
    ),
)

_ROWS = (
    Provider(
        name="infron",  # https://infronai.gitbook.io/docs/api-reference/embeddings
        uses_shortest_floats=True,
        base_url="https://llm.onerouter.pro/v1",
        inputs=_TEXTS,
        key=frozenset({"dimensions", "provider"}),
    ),
    Provider(
        name="openrouter",  # https://openrouter.ai/docs/api/reference/embeddings
        uses_shortest_floats=True,
        base_url="https://openrouter.ai/api/v1",
        inputs=_TOKENS | {InputFormat.CONTENT},
        key=frozenset({"dimensions", "input_type", "provider"}),
        neutral=frozenset({"user", "session_id", "trace"}),
    ),
    Provider(
        name="apertis",  # https://docs.apertis.ai/api/text-generation/embeddings
        uses_shortest_floats=True,
        base_url="https://api.apertis.ai/v1",
        inputs=_TEXTS,
        key=frozenset({"dimensions", "task"}),
    ),
    Provider(
        name="aigne",  # https://www.arcblock.io/content/docs/aigne-hub; one's own hub is at https://<host>/api/v1
        base_url="https://hub.aigne.io/app/api/v1",
        key=frozenset({"dimensions"}),
    ),
    Provider(
        name="nemorouter",
        uses_shortest_floats=True,
        base_url="https://api.nemorouter.ai/v1",
        inputs=_TEXTS,
        key=frozenset({"dimensions"}),
        fallback_markers=_STAND_INS | {"x-nr-guardrails": "redacted", "x-nr-routing": "fallback*"},
    ),
    Provider(
        name="openai",  # https://platform.openai.com/docs/api-reference/embeddings/create
        uses_shortest_floats=True,
        base_url="https://api.openai.com/v1",
        key=frozenset({"dimensions"}),
    ),
    Provider(
        name="azure",  # https://learn.microsoft.com/azure/ai-foundry/openai/reference; the deployment is in the path
        uses_shortest_floats=True,
        auth="api-key",
        accepts_openai_sdk=False,  # but by AzureOpenAI
        key=frozenset({"dimensions", "input_type"}),
        needs_model=False,
        has_deployments=True,
    ),
    Provider(
        name="jina",  # https://api.jina.ai/docs
        base_url="https://api.jina.ai/v1",
        inputs=_TEXTS | {InputFormat.MEDIA},
        key=frozenset({"task", "dimensions", "normalized", "truncate"}),
        neutral=frozenset(),
        cross_item={"late_chunking": False, "return_multivector": False, "return_tokenized_input": False},
        encoding=dict.fromkeys(("embedding_type", "encoding_format"), _FLOATS | {"binary", "ubinary"}),
        accepts_null=True,
        limits=Limits(items=512),
    ),
    Provider(
        name="voyage",  # https://docs.voyageai.com/reference/embeddings-api
        uses_shortest_floats=True,
        base_url="https://api.voyageai.com/v1",
        inputs=_TEXTS,
        key=frozenset({"input_type", "truncation", "output_dimension"}),
        neutral=frozenset(),
        # It refuses to be told "float", which it writes anyway.
        encoding={"encoding_format": frozenset({"base64"}), "output_dtype": _INTEGERS | {"float"}},
        packs_base64=True,
        accepts_null=True,
        limits=Limits(items=1000, tokens=120_000),
    ),
    Provider(
        name="cohere",  # https://docs.cohere.com/docs/compatibility-api
        base_url="https://api.cohere.ai/compatibility/v1",
        inputs=frozenset({InputFormat.TEXTS}),
        neutral=frozenset(),
        prefixes=(),
        limits=Limits(items=96),
    ),
    Provider(
        name="mistral",  # https://docs.mistral.ai/api/endpoint/embeddings
        responses_have_id=True,
        base_url="https://api.mistral.ai/v1",
        inputs=_TEXTS,
        key=frozenset({"output_dimension"}),
        neutral=frozenset({"metadata"}),
        encoding={"encoding_format": _FLOATS, "output_dtype": _INTEGERS | {"float"}},
        limits=Limits(items=256, tokens=16_384),
    ),
    Provider(
        name="together",  # https://docs.together.ai/reference/embeddings
        uses_shortest_floats=True,
        base_url="https://api.together.ai/v1",
        inputs=_TEXTS,
        neutral=frozenset(),  # it refuses `user` and `dimensions`
    ),
    Provider(
        name="fireworks",  # https://docs.fireworks.ai/api-reference/creates-an-embedding-vector-representing-the-input-text
        base_url="https://api.fireworks.ai/inference/v1",
        inputs=_TEXTS,
        key=frozenset({"prompt_template", "dimensions", "normalize"}),
        neutral=frozenset(),
        prefixes=(),
    ),
    Provider(
        name="gemini",  # https://ai.google.dev/gemini-api/docs/openai
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        inputs=_TEXTS,
        prefixes=(),
        key=frozenset({"dimensions"}),
        limits=Limits(items=100),
    ),
    Provider(
        name="nvidia",  # https://docs.nvidia.com/nim/nemo-retriever/text-embedding/latest/reference.html
        required_fields={"input_type": "query"},
        uses_shortest_floats=True,
        base_url="https://integrate.api.nvidia.com/v1",
        inputs=_TEXTS,
        key=frozenset({"input_type", "truncate", "dimensions", "modality"}),
        encoding={"encoding_format": _FLOATS, "embedding_type": _INTEGERS | {"float"}},
        references=(";asset_id,",),
    ),
    Provider(
        name="vllm",  # https://docs.vllm.ai/en/latest/serving/openai_compatible_server/
        base_url="http://127.0.0.1:8000/v1",
        key=frozenset(
            {
                "add_special_tokens",
                "dimensions",
                "normalize",
                "padding",
                "truncate_prompt_tokens",
                "truncation_side",
                "use_activation",
            }
        ),
        neutral=frozenset({"user", "request_id", "priority", "cache_salt"}),
        fixed={"embed_dtype": "float32", "endianness": "native"},
        needs_model=False,
    ),
    Provider(
        name="tei",  # https://huggingface.github.io/text-embeddings-inference/
        uses_shortest_floats=True,
        base_url="http://127.0.0.1:3000/v1",
        key=frozenset({"dimensions"}),
        limits=Limits(items=32, bytes=2_000_000),
        needs_model=False,
    ),
    Provider(
        name="infinity",  # https://michaelfeil.eu/infinity/
        base_url="http://127.0.0.1:7997",
        inputs=_TEXTS,
        key=frozenset({"dimensions", "modality"}),
        needs_model=False,
    ),
    Provider(
        name="ollama",  # https://docs.ollama.com/api/openai-compatibility
        uses_shortest_floats=True,
        base_url="http://127.0.0.1:11434/v1",
        inputs=_TEXTS,
        key=frozenset({"dimensions"}),
        aliases=("/v1", ""),  # /api/embeddings is its own API
        prefixes=("/v1",),
    ),
    Provider(
        name="llamacpp",  # https://github.com/ggml-org/llama.cpp/tree/master/tools/server
        base_url="http://127.0.0.1:8080/v1",
        key=frozenset({"dimensions", "embd_normalize"}),
        needs_model=False,
        aliases=("/v1",),  # /embeddings is its own API
        prefixes=("/v1",),
    ),
    Provider(
        name="lmstudio",  # https://lmstudio.ai/docs/developer/openai-compat
        base_url="http://127.0.0.1:1234/v1",
        inputs=_TEXTS,
        key=frozenset({"dimensions"}),
        neutral=frozenset({"user", "ttl"}),
        needs_model=False,
        aliases=("/v1", ""),  # /api/v0 and /api/v1 are its own API
        prefixes=("/v1",),
    ),
)

PROVIDERS: Mapping[str, Provider] = {row.name: row for row in (GENERIC, *_ROWS)}
