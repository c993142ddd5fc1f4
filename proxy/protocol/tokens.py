"""How many tokens an item costs, where the response does not say (pure)."""

from collections.abc import Sequence
from typing import Any

import orjson

from proxy.protocol.items import ItemKind


def share_tokens(total: int, weights: Sequence[int]) -> list[int]:
    """Apportion ``total`` tokens to items in proportion to ``weights``, by largest remainder, so that the sum is exact.

    No provider reports the tokens of each item of a batch.
    """
    whole = sum(weights)
    products = [total * weight for weight in weights]
    shares = [product // whole for product in products]
    left = total - sum(shares)
    if left:
        remainders = [product % whole for product in products]
        for i in sorted(range(len(weights)), key=remainders.__getitem__, reverse=True)[:left]:
            shares[i] += 1
    return shares


def weight(kind: ItemKind, item: Any) -> int:
    """An item's weight for `share_tokens`: its tokens, or the UTF-8 bytes of its text or JSON."""
    return weights(kind, [item])[0]


def weights(kind: ItemKind, items: Sequence[Any]) -> list[int]:
    """The `weight` of each item."""
    if kind is ItemKind.TOKENS:
        return list(map(len, items))
    if kind is ItemKind.TEXT:
        return [len(item) if item.isascii() else len(item.encode()) for item in items]
    return [len(orjson.dumps(item)) for item in items]


def typical_tokens(item: Any) -> int:
    """How many tokens a text, or another item, probably has; vocabularies differ by a third either way."""
    bytes_of_token = 4 if type(item) is not str or item.isascii() else 3
    return max(1, -(-weight(ItemKind.TEXT if type(item) is str else ItemKind.OBJECT, item) // bytes_of_token))


def estimated_tokens(kind: ItemKind, weights: Sequence[int]) -> list[int]:
    """The tokens of items of these weights, to keep a call within an upstream's limit: exact for token lists, an
    overestimate for text.

    A token has about four bytes in English and about three in most other scripts.
    """
    return list(weights) if kind is ItemKind.TOKENS else [weight // 3 + 1 for weight in weights]
