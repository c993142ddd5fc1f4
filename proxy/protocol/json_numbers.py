"""Numbers that JSON parsers agree on (pure)."""

from typing import Any

# RFC 8259 §6: parsers that read numbers as IEEE 754 doubles agree on integers up to 2**53 in magnitude.
MAX_EXACT_INTEGER = 2**53


def is_exact(value: Any) -> bool:
    """Whether no number in ``value`` can have lost digits. The parser turns integers beyond 64 bits into floats."""
    if type(value) is dict:
        return all(map(is_exact, value.values()))
    if type(value) is list:
        return all(map(is_exact, value))
    return type(value) is not float or abs(value) < MAX_EXACT_INTEGER
