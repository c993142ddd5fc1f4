"""What a client would have got without the proxy."""

from typing import Any

from tests.support.scripted import ScriptedUpstream


def expected(
    upstream: ScriptedUpstream, items: list[Any], model: str = "m", dimensions: int | None = None
) -> list[list[float]]:
    """What a direct call with `encoding_format: float` would have parsed to."""
    asked = {"model": model}
    return [list(upstream.embedding(asked, item, dimensions or upstream.dimensions)) for item in items]  # type: ignore[arg-type]
