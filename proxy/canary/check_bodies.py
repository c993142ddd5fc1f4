"""What the canary asks: the same few texts, each alone and all in one batch (pure).

The texts are part of the reference's key, so another list of texts has another reference.
"""

from typing import Any

import orjson

from proxy.protocol.items import ItemKind
from proxy.protocol.provider import InputFormat, Provider
from proxy.protocol.tokens import estimated_tokens, weights

# Several languages and lengths, since a change of the tokenizer may show in one of them only.
TEXTS = (
    "hello, world",
    "The canary sings while the air is good; it falls silent before the miners notice anything.",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)  # ZeroDivisionError if empty",
    "Der Übersetzer prüft größere Änderungen; 北京的天气今天很好,明天可能会下雨。",
)
_TIMES = 2  # each text is asked for alone and in the batch
_MONTH_S = 30 * 24 * 3600.0


class CheckBodies:
    """The bodies of one check of ``model``; None: the URL alone names it."""

    def __init__(self, provider: Provider, model: str | None) -> None:
        self._fields: dict[str, Any] = {**provider.required_fields}
        if model is not None:
            self._fields = {"model": model, **self._fields}
        self._is_text = InputFormat.TEXT in provider.inputs
        self._has_batch = InputFormat.TEXTS in provider.inputs and not provider.is_fused_model(model)

    @property
    def alone(self) -> list[bytes]:
        """A body for each text."""
        return [self._body(text if self._is_text else [text]) for text in TEXTS]

    @property
    def batch(self) -> bytes | None:
        """One body for all texts; None if the upstream takes no lists: then each text is asked for alone again."""
        return self._body(list(TEXTS)) if self._has_batch else None

    def _body(self, given: str | list[str]) -> bytes:
        return orjson.dumps({**self._fields, "input": given})


def tokens_a_month(interval_s: float) -> int:
    """About how many tokens a month the checks of one model cost; too high rather than too low."""
    once = sum(estimated_tokens(ItemKind.TEXT, weights(ItemKind.TEXT, TEXTS)))
    return round(_TIMES * once * _MONTH_S / interval_s)
