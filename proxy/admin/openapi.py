"""The OpenAPI description of the cached route, for one provider (pure).

https://spec.openapis.org/oas/v3.1.1. It describes requests that are cached. Other requests are relayed, and their
responses are the upstream's.
"""

from typing import Any

from proxy import __version__
from proxy.protocol.provider import InputFormat, Provider

_TEXT = {"type": "string", "minLength": 1}
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PART = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            "required": ["type", "text"],
        },
        {
            "type": "object",
            "properties": {
                "type": {"const": "image_url"},
                "image_url": {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]},
            },
            "required": ["type", "image_url"],
        },
    ]
}
_ITEMS: dict[InputFormat, dict[str, Any]] = {
    InputFormat.TEXTS: _TEXT,
    InputFormat.TOKEN_LISTS: _TOKENS,
    InputFormat.CONTENT: {
        "type": "object",
        "properties": {"content": {"type": "array", "items": _PART, "minItems": 1}},
        "required": ["content"],
    },
    InputFormat.MEDIA: {"type": "object", "properties": {"text": _TEXT, "image": _TEXT}},
}
_ERROR = {
    "description": "An error of the upstream, relayed unchanged, or of the proxy.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_OWN_ERRORS = {
    400: "The request is not valid HTTP, or the upstream needs a model.",
    401: "The API key is unknown, or the upstream refused it.",
    403: "A web page of this origin may not use the proxy.",
    408: "The request did not arrive in time.",
    413: "The body exceeds --max-body or has too many JSON values, or the response would be too large.",
    414: "The request target is too long.",
    429: "The upstream's rate limit takes no call now, or a budget is used up; see Retry-After.",
    431: "A header field is too large, or there are too many.",
    502: "The upstream could not be reached.",
    503: "The upstream is down, or a limit of the proxy is reached; see Retry-After.",
    504: "The upstream timed out; or the request has only-if-cached and an item is not cached (missing: which).",
}


def describe(provider: Provider, base_url: str) -> dict[str, Any]:
    """The document for a proxy at ``base_url``, as JSON."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "embedding-proxy", "version": __version__, "summary": f"In front of {provider.name}."},
        "servers": [{"url": base_url}],
        "paths": {
            "/embeddings": {
                "post": {
                    "operationId": "createEmbedding",
                    "summary": "Embed items, from the cache where possible.",
                    "parameters": [
                        {
                            "name": "Cache-Control",
                            "in": "header",
                            "schema": {"type": "string"},
                            "description": "no-cache, no-store, only-if-cached, max-age=SECONDS.",
                        },
                        {
                            "name": "Prefer",
                            "in": "header",
                            "schema": {"type": "string"},
                            "description": "wait=SECONDS; return=minimal, with only-if-cached: no body if all items"
                            " are cached.",
                        },
                    ],
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Request"}}},
                    },
                    "responses": {
                        "200": _response(),
                        "204": {
                            "description": "The request has only-if-cached and Prefer: return=minimal, and all items"
                            " are cached."
                        },
                        **{str(status): {**_ERROR, "description": text} for status, text in _OWN_ERRORS.items()},
                        "default": _ERROR,
                    },
                }
            }
        },
        "components": {"schemas": {"Request": _request(provider), "Embeddings": _embeddings(), "Error": _error()}},
    }


def _request(provider: Provider) -> dict[str, Any]:
    properties: dict[str, Any] = {"model": {"type": "string"}, "input": {"oneOf": _inputs(provider)}}
    for name in sorted(provider.encoding):
        properties[name] = {"enum": sorted(provider.encoding[name])}
    for name in sorted(provider.key):
        properties[name] = {"description": "Changes the vector: part of the key.", "not": {"type": "array"}}
    for name in sorted(provider.neutral):
        properties[name] = {"description": "Does not change the vector."}
    for name, only_value in sorted({**provider.cross_item, **provider.fixed}.items()):
        properties[name] = {"description": "Cached only with this value.", "examples": [only_value]}
    return {
        "type": "object",
        "properties": properties,
        "required": ["model", "input"] if provider.needs_model else ["input"],
        "description": "A request with other fields is cached by its whole body, or relayed without caching.",
    }


def _inputs(provider: Provider) -> list[dict[str, Any]]:
    alone = {InputFormat.TEXT: _TEXT, InputFormat.TOKENS: _TOKENS}
    lists = {form: {"type": "array", "items": item, "minItems": 1} for form, item in _ITEMS.items()}
    return [schema for form, schema in {**alone, **lists}.items() if form in provider.inputs]


def _response() -> dict[str, Any]:
    return {
        "description": "One embedding per item, in input order.",
        "headers": {
            "X-Cache": {"schema": {"enum": ["HIT", "PARTIAL", "MISS", "BYPASS"]}, "required": True},
            "Cache-Status": {"schema": {"type": "string"}, "description": "X-Cache in the form of RFC 9211."},
            "X-Cache-Saved-Tokens": {"schema": {"type": "string", "pattern": "^[0-9]+$"}},
        },
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Embeddings"}}},
    }


def _embeddings() -> dict[str, Any]:
    count = {"type": "integer", "minimum": 0}
    numbers = {"type": "array", "items": {"type": "number"}, "minItems": 1}
    return {
        "type": "object",
        "properties": {
            "object": {"const": "list"},
            "data": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "object": {"const": "embedding"},
                        "index": count,
                        "embedding": {"oneOf": [numbers, {"type": "string", "contentEncoding": "base64"}]},
                    },
                    "required": ["object", "index", "embedding"],
                },
            },
            "model": {"type": "string"},
            "usage": {
                "type": "object",
                "properties": {"prompt_tokens": count, "total_tokens": count},
                "required": ["prompt_tokens", "total_tokens"],
            },
        },
        "required": ["object", "data", "model", "usage"],
    }


def _error() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
                "required": ["message"],
                "description": "The proxy's own errors. Those of upstreams may have other fields.",
            }
        },
    }
