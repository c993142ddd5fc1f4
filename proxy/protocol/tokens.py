"""What an item costs in tokens, where nobody says so (pure)."""

from collections.abc import Sequence
from typing import Any

import orjson

from proxy.protocol.items import ItemKind


def share_tokens(total: int, weights: Sequence[int]) -> list[int]:
    """Share ``total`` tokens over items by ``weights``, by largest remainder, so that the shares add up to it.

    No provider says what each item of a batch cost.
    """
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: total * weights[i] % whole, reverse=True)
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def weight(kind: ItemKind, item: Any) -> int:
    """What an item's share of the tokens goes by: tokens, or UTF-8 bytes of the text or canonical JSON."""
    if kind is ItemKind.TOKENS:
        return len(item)
    if kind is ItemKind.TEXT:
        return len(item) if item.isascii() else len(item.encode())
    return len(orjson.dumps(item))


def estimated_tokens(kind: ItemKind, item: Any) -> int:
    """Tokens of an item for keeping within an upstream's limit: exact for tokens, generous for text.

    A token of English is about four bytes and a token of most other scripts about three.
    """
    return len(item) if kind is ItemKind.TOKENS else weight(kind, item) // 3 + 1
