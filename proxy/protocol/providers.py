"""The table of providers, each row with the page that it comes from (pure).

``embedding-proxy providers`` prints this table. A configuration file can add rows and change them.
"""

from collections.abc import Mapping

from proxy.protocol.provider import (
    FLOATS,
    INTEGERS,
    LITELLM_FALLBACK,
    NO_LIMIT,
    TEXTS,
    TOKENS,
    InputFormat,
    Limits,
    Provider,
)

# For an unknown upstream: what OpenAI documents, and fields that mean the same at every provider that has them.
GENERIC = Provider(
    name="generic",
    limits=Limits(items=NO_LIMIT),
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
        inputs=TEXTS,
        key=frozenset({"dimensions", "provider"}),
    ),
    Provider(
        name="openrouter",  # https://openrouter.ai/docs/api/reference/embeddings
        uses_shortest_floats=True,
        base_url="https://openrouter.ai/api/v1",
        inputs=TOKENS | {InputFormat.CONTENT},
        key=frozenset({"dimensions", "input_type", "provider"}),
        neutral=frozenset({"user", "session_id", "trace"}),
    ),
    Provider(
        name="apertis",  # https://docs.apertis.ai/api/text-generation/embeddings
        uses_shortest_floats=True,
        base_url="https://api.apertis.ai/v1",
        inputs=TEXTS,
        key=frozenset({"dimensions", "task"}),
    ),
    Provider(
        name="aigne",  # https://www.arcblock.io/content/docs/aigne-hub; a self-hosted hub is at https://<host>/api/v1
        base_url="https://hub.aigne.io/app/api/v1",
        key=frozenset({"dimensions"}),
    ),
    Provider(
        name="nemorouter",
        uses_shortest_floats=True,
        base_url="https://api.nemorouter.ai/v1",
        inputs=TEXTS,
        key=frozenset({"dimensions"}),
        fallback_markers=LITELLM_FALLBACK | {"x-nr-guardrails": "redacted", "x-nr-routing": "fallback*"},
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
        accepts_openai_sdk=False,  # only its AzureOpenAI client's
        key=frozenset({"dimensions", "input_type"}),
        needs_model=False,
        has_deployments=True,
    ),
    Provider(
        name="jina",  # https://api.jina.ai/docs
        base_url="https://api.jina.ai/v1",
        inputs=TEXTS | {InputFormat.MEDIA},
        key=frozenset({"task", "dimensions", "normalized", "truncate"}),
        neutral=frozenset(),
        cross_item={"late_chunking": False, "return_multivector": False, "return_tokenized_input": False},
        encoding=dict.fromkeys(("embedding_type", "encoding_format"), FLOATS | {"binary", "ubinary"}),
        accepts_null=True,
        limits=Limits(items=512),
    ),
    Provider(
        name="voyage",  # https://docs.voyageai.com/reference/embeddings-api
        uses_shortest_floats=True,
        base_url="https://api.voyageai.com/v1",
        inputs=TEXTS,
        key=frozenset({"input_type", "truncation", "output_dimension"}),
        neutral=frozenset(),
        # It rejects the value "float", although that is what it writes.
        encoding={"encoding_format": frozenset({"base64"}), "output_dtype": INTEGERS | {"float"}},
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
        inputs=TEXTS,
        key=frozenset({"output_dimension"}),
        neutral=frozenset({"metadata"}),
        encoding={"encoding_format": FLOATS, "output_dtype": INTEGERS | {"float"}},
        limits=Limits(items=256, tokens=16_384),
    ),
    Provider(
        name="together",  # https://docs.together.ai/reference/embeddings
        uses_shortest_floats=True,
        base_url="https://api.together.ai/v1",
        inputs=TEXTS,
        neutral=frozenset(),  # it rejects `user` and `dimensions`
    ),
    Provider(
        name="fireworks",  # https://docs.fireworks.ai/api-reference/creates-an-embedding-vector-representing-the-input-text
        base_url="https://api.fireworks.ai/inference/v1",
        inputs=TEXTS,
        key=frozenset({"prompt_template", "dimensions", "normalize"}),
        neutral=frozenset(),
        prefixes=(),
    ),
    Provider(
        name="gemini",  # https://ai.google.dev/gemini-api/docs/openai
        base_url="https://generativelanguage.googleapis.com/v1beta/openai",
        inputs=TEXTS,
        prefixes=(),
        key=frozenset({"dimensions"}),
        limits=Limits(items=100),
    ),
    Provider(
        name="nvidia",  # https://docs.nvidia.com/nim/nemo-retriever/text-embedding/latest/reference.html
        required_fields={"input_type": "query"},
        uses_shortest_floats=True,
        base_url="https://integrate.api.nvidia.com/v1",
        inputs=TEXTS,
        key=frozenset({"input_type", "truncate", "dimensions", "modality"}),
        encoding={"encoding_format": FLOATS, "embedding_type": INTEGERS | {"float"}},
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
        inputs=TEXTS,
        key=frozenset({"dimensions", "modality"}),
        needs_model=False,
    ),
    Provider(
        name="ollama",  # https://docs.ollama.com/api/openai-compatibility
        uses_shortest_floats=True,
        base_url="http://127.0.0.1:11434/v1",
        inputs=TEXTS,
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
        inputs=TEXTS,
        key=frozenset({"dimensions"}),
        neutral=frozenset({"user", "ttl"}),
        needs_model=False,
        aliases=("/v1", ""),  # /api/v0 and /api/v1 are its own API
        prefixes=("/v1",),
    ),
)

PROVIDERS: Mapping[str, Provider] = {row.name: row for row in (GENERIC, *_ROWS)}
