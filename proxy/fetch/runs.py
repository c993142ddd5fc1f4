"""What fits into one call (pure)."""

from collections.abc import Iterable, Iterator

_Size = tuple[int, int, int]  # items, tokens, bytes


def runs_of(sizes: Iterable[_Size], limits: _Size) -> Iterator[slice]:
    """Cut a sequence, in order, into the longest runs whose summed sizes keep within ``limits``.

    An element that alone exceeds them is a run of its own: the upstream decides what to do with it.
    """
    max_items, max_tokens, max_bytes = limits
    start, end = 0, -1
    run_items = run_tokens = run_bytes = 0
    for end, (items, tokens, size_bytes) in enumerate(sizes):
        run_items += items
        run_tokens += tokens
        run_bytes += size_bytes
        is_over = run_items > max_items or run_tokens > max_tokens or run_bytes > max_bytes
        if is_over and end > start:
            yield slice(start, end)
            start, run_items, run_tokens, run_bytes = end, items, tokens, size_bytes
    if end >= start:
        yield slice(start, end + 1)
