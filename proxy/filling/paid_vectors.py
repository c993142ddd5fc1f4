"""Vectors of files as the proxy would have stored them from the upstream's response."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxy.fetch.request import ClientRequest
from proxy.filling.paid import PaidCall, PaidText
from proxy.protocol import embedding_response, vectors
from proxy.protocol.embedding_response import EmbeddingResponse, InvalidEmbeddingResponse
from proxy.protocol.provider import Provider
from proxy.protocol.vectors import DType, InvalidVector, Vector

_WHY = {
    "vector": "a number that is not finite, all zeros, base64 that is no vector, or something else than numbers",
    "no-embedding": "null in place of a vector",
    "not-json": "not JSON, as NaN is not",
    "count": "not as many vectors as items",
    "indices": "the indices of the vectors are not those of the items",
    "mixed-dimensions": "vectors of several lengths",
    "error-in-200": "an error in place of vectors",
    "no-data": "no vectors",
    "encoding": "base64 for a request that could not be answered so",
    "further-fields": "more than a vector an item, such as sparse weights",
}


class NotAVector(ValueError):
    """Not a vector that the upstream could have written. The message says why."""


def vector_of(paid: PaidText, request: ClientRequest) -> Vector:
    """The vector of a text of ``request``. Raises `NotAVector`."""
    provider = request.origin.provider
    if isinstance(paid.embedding, bytes):
        body = b'{"data":[{"index":0,"embedding":%b}]}' % paid.embedding
        (vector,) = _parsed(body, request, items=1).vectors
        if vector is None:  # the parser would have raised
            raise NotAVector(_WHY["vector"])
    else:
        vector = _from_array(paid.embedding, request)
    return _as_written(vector, provider)


def response_of(paid: PaidCall, request: ClientRequest) -> EmbeddingResponse:
    """The response to ``request``. Raises `NotAVector`."""
    response = _parsed(paid.response, request, items=len(request.spec.keys))
    if request.origin.provider.is_multi_vector_model(response.model):
        raise NotAVector("a model that makes several vectors of an item")
    return response


def why_unusable(response: EmbeddingResponse) -> str:
    return _why(response.unusable or "vector")


def _parsed(body: bytes, request: ClientRequest, *, items: int) -> EmbeddingResponse:
    parsed = request.parsed
    try:
        return embedding_response.parse_response(
            body, request.origin.provider, items=items, packed=parsed.packed, reads_base64=parsed.reads_base64
        )
    except InvalidEmbeddingResponse as invalid:
        raise NotAVector(_why(invalid.reason)) from invalid


def _why(reason: str) -> str:
    return _WHY.get(reason, reason)


def _from_array(array: NDArray[Any], request: ClientRequest) -> Vector:
    packed, provider = request.parsed.packed, request.origin.provider
    try:
        if array.dtype.kind == "f" and packed is None:
            return vectors.from_floats(array.astype(np.float64))
        return vectors.from_numbers(array.tolist(), packed, as_floats=not provider.packs_base64)
    except InvalidVector as invalid:
        raise NotAVector(str(invalid)) from invalid


def _as_written(vector: Vector, provider: Provider) -> Vector:
    """The vector as ``provider`` writes it as text, where that is known.

    A file may have float32 values widened to float64, as the OpenAI SDK returns them after it decodes base64. A value
    that is no float32 was computed, rounded or truncated after the response.
    """
    if not provider.uses_shortest_floats:
        return vector
    if vector.dtype is DType.FLOAT32:
        return Vector(DType.FLOAT32_SHORTEST, vector.payload)
    if vector.dtype is DType.FLOAT64:
        raise NotAVector(
            f"not the numbers of a float32 vector, which is what {provider.name} writes: they were computed or rounded"
        )
    return vector


def lengths_that_count(lengths: Sequence[int]) -> int:
    """The length of one model's vectors, from a sample: the most frequent length, and of equally frequent ones the
    first."""
    return max(dict.fromkeys(lengths), key=lengths.count)
