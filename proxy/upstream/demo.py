"""The built-in upstream, for trying the proxy without a key or a network: not a model, and useless for search.

A text's vector is the signed, weighted counts of its hashed character n-grams, spread over all dimensions and scaled to
length 1. Texts with similar spelling get similar vectors; meaning plays no part.
"""

import numpy as np
import orjson
import pybase64
from aiohttp import web
from numpy.typing import NDArray

_NATIVE_DIMENSIONS = 1536
_MAX_DIMENSIONS = 4096
_MAX_ITEMS = 2048
_GRAMS = (1, 2, 3, 4)
# Odd 64-bit constants; any would do, but changing one changes every vector.
_GRAM_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIX_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)
_ONE = np.uint64(1)
# The weight of a gram: large compared with 1, and similar for all grams, so that shared grams count alike.
_LEAST_WEIGHT, _WEIGHT_BITS = 256.0, np.uint64(255)


def embed(item: str | list[int], dimensions: int) -> NDArray[np.float32]:
    """The vector of one item, of Euclidean length 1 and without zeros; the same on every machine."""
    symbols = np.fromiter(map(ord, item) if isinstance(item, str) else item, np.uint64, len(item))
    hashes = np.concatenate([_hashed_grams(symbols, n) for n in _GRAMS if n <= len(symbols)])
    signs = (hashes & _ONE).astype(np.float64) * 2 - 1
    weights = _LEAST_WEIGHT + ((hashes >> _ONE) & _WEIGHT_BITS).astype(np.float64)
    size = 1 << (dimensions - 1).bit_length()
    buckets = ((hashes >> _SHIFT) % np.uint64(size)).astype(np.int64)
    counts = np.bincount(buckets, signs * weights, size).astype(np.float64)
    # Sums of integers are exact in any order, so every machine gets the same; 2 n + 1 is never zero.
    spread = _spread(counts)[:dimensions] * 2 + 1
    return (spread / np.linalg.norm(spread)).astype(np.float32)


def _spread(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Walsh-Hadamard transform, with the numbers in another order: every count is added to, or subtracted from,
    every number, and angles between vectors are kept. The length must be a power of two."""
    for _ in range(len(counts).bit_length() - 1):
        even, odd = counts[0::2], counts[1::2]
        counts = np.concatenate((even + odd, even - odd))
    return counts


def _hashed_grams(symbols: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A hash of each run of ``n`` symbols; uint64 arithmetic wraps, as intended."""
    hashes = np.full(len(symbols) - n + 1, n, np.uint64)
    for offset in range(n):
        hashes = (hashes ^ symbols[offset : offset + len(hashes)]) * _GRAM_MULTIPLIER
        hashes ^= hashes >> _SHIFT
        hashes *= _MIX_MULTIPLIER
        hashes ^= hashes >> _SHIFT
    return hashes


class _InvalidRequest(Exception):
    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def make_app() -> web.Application:
    """An aiohttp application with ``/v1/embeddings`` and ``/v1/models``, as OpenAI documents them."""
    app = web.Application(client_max_size=1024**3)
    app.router.add_post("/v1/embeddings", _embeddings)
    app.router.add_get("/v1/models", _models)
    return app


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "demo", "object": "model", "owned_by": "demo"}]})


async def _embeddings(request: web.Request) -> web.Response:
    try:
        body = _response(await request.read())
    except _InvalidRequest as invalid:
        error = {
            "message": str(invalid),
            "type": "invalid_request_error",
            "param": invalid.param,
            "code": None,
        }
        return web.json_response({"error": error}, status=400)
    return web.Response(body=body, content_type="application/json")


def _response(body: bytes) -> bytes:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _InvalidRequest(f"the body is not JSON: {error}", "body") from None
    if not isinstance(request, dict) or not isinstance(request.get("model"), str):
        raise _InvalidRequest("the body must be an object with a model", "model")
    items = _items(request.get("input"))
    vectors = [embed(item, _dimensions(request)) for item in items]
    tokens = sum(max(1, len(item) // 4) if isinstance(item, str) else len(item) for item in items)
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": _encoded(vector, request.get("encoding_format", "float")),
        }
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    response = {"object": "list", "data": data, "model": request["model"], "usage": usage}
    return orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)


def _items(given: object) -> list[str | list[int]]:
    if isinstance(given, str) or (isinstance(given, list) and given and _is_tokens(given)):
        given = [given]
    if not isinstance(given, list) or not 0 < len(given) <= _MAX_ITEMS:
        raise _InvalidRequest(
            f"input must be a string, an array of tokens, or an array of 1 to {_MAX_ITEMS} of these", "input"
        )
    for i, item in enumerate(given):
        if not item or not (isinstance(item, str) or _is_tokens(item)):
            raise _InvalidRequest(f"input[{i}] must be a text or an array of tokens, and not empty", "input")
    return given


def _is_tokens(item: object) -> bool:
    return isinstance(item, list) and all(type(token) is int and 0 <= token < 2**63 for token in item)


def _dimensions(request: dict[str, object]) -> int:
    dimensions = request.get("dimensions", _NATIVE_DIMENSIONS)
    if type(dimensions) is not int or not 0 < dimensions <= _MAX_DIMENSIONS:
        raise _InvalidRequest(f"dimensions must be a whole number from 1 to {_MAX_DIMENSIONS}", "dimensions")
    return dimensions


def _encoded(vector: NDArray[np.float32], encoding: object) -> object:
    if encoding == "float":
        return vector
    if encoding == "base64":
        return pybase64.b64encode(vector.astype("<f4").tobytes()).decode()
    raise _InvalidRequest("encoding_format must be float or base64", "encoding_format")
