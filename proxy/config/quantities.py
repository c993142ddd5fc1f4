"""Sizes and durations as operators write them (pure)."""

import re

from proxy.config.settings import GIB, KIB, MIB
from proxy.errors import ConfigError

_SIZES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": KIB, "mib": MIB, "gib": GIB}
_DURATIONS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_MIN_CANARY_INTERVAL_S = 60.0  # each check costs tokens
_MIN_TTL_S = 1.0  # entries have the second when they were stored
_MAX_OVERLAP_S = 3650 * 86400.0
# Beyond these, stores and the event loop can't count.
_MAX_S, _MAX_BYTES = 36500 * 86400.0, 1024**2 * GIB
_MIN_BODY_BYTES = 1000
_MIN_HELD_BYTES = MIB
_QUANTITY = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([a-z]*)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes: ``512MiB``, ``2GB``, ``1048576``. Raises `ConfigError`."""
    size = int(_quantity(text, _SIZES, "a size", "a number with B, KB, MB, GB, KiB, MiB or GiB, such as 512MiB"))
    if size > _MAX_BYTES:
        raise ConfigError(f"{text!r} is too large; accepted: {_MAX_BYTES // GIB}GiB or less")
    return size


def parse_body_limit(text: str) -> int:
    """Bytes, enough for a request. Raises `ConfigError`."""
    return _at_least(_MIN_BODY_BYTES, text, "1KB")


def parse_held_limit(text: str) -> int:
    """Bytes, enough for a request and its response. Raises `ConfigError`."""
    return _at_least(_MIN_HELD_BYTES, text, "1MiB")


def _at_least(least: int, text: str, in_words: str) -> int:
    size = parse_size(text)
    if size < least:
        raise ConfigError(f"{text!r} is too small; accepted: {in_words} or more")
    return size


def parse_duration(text: str) -> float | None:
    """Seconds: ``30d``, ``12h``, ``90``; None for ``none``. Raises `ConfigError`."""
    if text.strip().lower() == "none":
        return None
    seconds = _seconds(text, "a number with ms, s, m, h, d or w, such as 30d; or none")
    if seconds < _MIN_TTL_S:
        raise ConfigError(f"{text!r} is less than a second; to keep entries indefinitely, use none")
    return seconds


def parse_seconds(text: str) -> float:
    """Seconds, zero included: ``10ms``, ``5s``, ``0``. Raises `ConfigError`."""
    return _seconds(text, "a number with ms, s, m, h, d or w, such as 10ms")


def parse_overlap(text: str) -> float:
    """Seconds of at most ten years. Raises `ConfigError`."""
    seconds = parse_seconds(text)
    if seconds > _MAX_OVERLAP_S:
        raise ConfigError(f"{text!r} is more than ten years; accepted: less, such as 7d")
    return seconds


def parse_positive_seconds(text: str) -> float:
    """Seconds above zero: ``10m``, ``30s``. Raises `ConfigError`."""
    seconds = parse_seconds(text)
    if seconds <= 0:
        raise ConfigError(f"{text!r} is not above zero; accepted: a number with ms, s, m, h, d or w, such as 10m")
    return seconds


def parse_canary_interval(text: str) -> float | None:
    """Seconds: ``6h``, at least a minute; None for ``off``. Raises `ConfigError`."""
    if text.strip().lower() in {"off", "none"}:
        return None
    seconds = _seconds(text, "a number with m, h, d or w, such as 6h; or off")
    if seconds < _MIN_CANARY_INTERVAL_S:
        raise ConfigError(f"{text!r} is less than a minute; accepted: 1m or more, such as 6h; or off")
    return seconds


def _seconds(text: str, accepted: str) -> float:
    seconds = _quantity(text, _DURATIONS, "a duration", accepted)
    if seconds > _MAX_S:
        raise ConfigError(f"{text!r} is more than a hundred years; accepted: {accepted}")
    return seconds


def _quantity(text: str, units: dict[str, float] | dict[str, int], noun: str, accepted: str) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2].lower() not in units:
        raise ConfigError(f"{text!r} is not {noun}; accepted: {accepted}")
    return float(match[1]) * units[match[2].lower()]
