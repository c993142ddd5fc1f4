"""What the response to an embeddings call is expected to have (pure)."""

from typing import NamedTuple

from proxy.protocol.provider import Provider
from proxy.protocol.vectors import DType


class ExpectedResponse(NamedTuple):
    """``packed`` is the integer type that the request named; ``reads_base64``: base64 contains float32 or that type."""

    provider: Provider
    items: int
    packed: DType | None = None
    reads_base64: bool = True

    @property
    def base64_dtype(self) -> DType:
        if self.packed is not None:
            return self.packed
        return DType.FLOAT32_SHORTEST if self.provider.uses_shortest_floats else DType.FLOAT32
