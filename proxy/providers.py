"""What each provider documents: where it is, and what the fields of an embeddings request mean there (pure)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The classes a field of the request body can have; one that is in none of them makes a request bypass.

    ``key``: changes the vector of each item alike, so its value is part of every item's key.
    ``neutral``: changes nothing about the vector.
    """

    key: frozenset[str]
    neutral: frozenset[str]


# ``model``, ``input`` and ``encoding_format`` have meanings of their own and stand in no class.
GENERIC_FIELDS = Fields(
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
    neutral=frozenset({"user", "session_id", "trace", "metadata", "request_id"}),
)

# What one call may hold. OpenAI's own limit; none of the presets documents a lower one.
MAX_BATCH_ITEMS = 2048

# name -> the base URL its documentation gives for the OpenAI-compatible API.
BASE_URLS = {
    "aigne": "https://hub.aigne.io/app/api",  # the hosted hub; one's own hub is at https://<host>/api
    "apertis": "https://api.apertis.ai/v1",
    "infron": "https://llm.onerouter.pro/v1",
    "nemorouter": "https://api.nemorouter.ai/v1",
    "openai": "https://api.openai.com/v1",
    "openrouter": "https://openrouter.ai/api/v1",
}
