"""What a response says about the upstream's rate limits (pure).

Sources: OpenAI (https://platform.openai.com/docs/guides/rate-limits, ``x-ratelimit-remaining-tokens: 149984``,
``x-ratelimit-reset-tokens: 6m0s``), whose fields Azure, Mistral, Together and Groq have with small differences;
Anthropic's ``anthropic-ratelimit-requests-remaining``; the IETF's ``RateLimit-Remaining`` and, from draft 8 on,
``RateLimit: "default";r=50;t=30`` (draft-ietf-httpapi-ratelimit-headers); ``Retry-After`` (RFC 9110 §10.2.3);
OpenAI's ``retry-after-ms``; Google's ``RetryInfo`` (https://google.aip.dev/193) in an error's details.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from proxy.protocol import error_body
from proxy.protocol.memo import memoized

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_DURATION_UNITS_S = (86400.0, 3600.0, 60.0, 1.0, 0.001)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+")
_SEPARATORS = re.compile(r"[-_]")
# Larger numbers are times since 1970, in seconds or in milliseconds.
_LATEST_DELAY_S, _LATEST_EPOCH_S = 10.0**8, 10.0**11
# Longer waits and larger numbers are cut to these: nobody could wait that long, or reach that many.
_MAX_WAIT_S = 3600.0
_LARGEST = {"limit": 10.0**12, "remaining": 10.0**12, "reset": 86400.0}
_DELAYS = {"retry-after": "delay", "retry-after-ms": "delay-ms"}
# Both writings of the field, and what Together calls its limit on tokens.
_FAMILIES = {"ratelimit": "requests", "tokenlimit": "tokens", "ratelimitbysize": "tokens"}
_TOKEN_WORDS = frozenset({"token", "tokens", "input", "output"})
_REQUEST_WORDS = frozenset({"request", "requests", "req"})
_WINDOW_WORDS = frozenset({"second", "minute", "hour", "day", "month"})
_MAX_QUOTAS, _MAX_PARAMETERS = 8, 8
_MAX_NAME, _MAX_NAMES = 128, 2048
_MAX_FIELDS = 4096  # sets of names that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """One limit as a response states it. ``reset_s`` is the time until the limit is full again. A token bucket refills
    all the time, so there it grows with use; for a fixed window it is the rest of the window."""

    limit: float | None = None
    remaining: float | None = None
    reset_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """``quotas`` by a name that begins with their unit, ``requests`` or ``tokens``; ``retry_after_s`` is how long to
    wait before the next call, if the response says it."""

    quotas: Mapping[str, Quota]
    retry_after_s: float | None = None


NOTHING_STATED = RateLimits(quotas={})


def of_headers(headers: Mapping[str, str], *, now_s: float) -> RateLimits:
    """What header fields say. ``now_s`` is the time since 1970, for fields that name a time of day.

    A field that can't be read is ignored: a wrong limit would stop calls that the upstream takes.
    """
    all_names = "\n".join(headers)
    # Does what `memoized` does, without the cost of its call: every miss runs this.
    names = (_names_among if len(all_names) <= _MAX_NAMES else _names_among.__wrapped__)(all_names)
    if not names:  # the usual case
        return NOTHING_STATED
    stated: dict[str, dict[str, float]] = {}
    retry_after_s = None
    for name, value in headers.items():
        field = _field(name) if name in names else None
        if field is None:
            continue
        quota, attribute = field
        if attribute == "delay-ms":
            retry_after_s = _milliseconds(value, retry_after_s)
        elif attribute == "delay":
            retry_after_s = _delay_s(value, now_s) if retry_after_s is None else retry_after_s
        else:
            for own_quota, own_attribute, number in _numbers(quota, attribute, value, now_s):
                if len(stated) < _MAX_QUOTAS or own_quota in stated:
                    stated.setdefault(own_quota, {})[own_attribute] = min(number, _LARGEST[own_attribute])
    if not stated and retry_after_s is None:
        return NOTHING_STATED
    quotas = {
        name: Quota(limit=of.get("limit"), remaining=of.get("remaining"), reset_s=of.get("reset"))
        for name, of in stated.items()
        if "limit" in of or "remaining" in of
    }
    return RateLimits(quotas=quotas, retry_after_s=None if retry_after_s is None else min(retry_after_s, _MAX_WAIT_S))


def of_refusal(headers: Mapping[str, str], body: bytes, *, now_s: float) -> RateLimits:
    """What an error says: its header fields and, where they name no delay, its body."""
    stated = of_headers(headers, now_s=now_s)
    delay_s = retry_delay_s(error_body.parsed(body)) if stated.retry_after_s is None else None
    return stated if delay_s is None else replace(stated, retry_after_s=delay_s)


def retry_delay_s(error: Any) -> float | None:
    """The delay of Google's ``RetryInfo`` in the parsed body of an error: ``{"error": {"details": [{"@type":
    "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17s"}]}}``, which Gemini may wrap in a list."""
    if type(error) is list and error:
        error = error[0]
    inner = error.get("error") if type(error) is dict else None
    details = inner.get("details") if type(inner) is dict else None
    for detail in details if type(details) is list else ():
        if type(detail) is dict and str(detail.get("@type", "")).endswith("google.rpc.RetryInfo"):
            delay = detail.get("retryDelay")
            delay_s = _duration_s(delay) if type(delay) is str else None
            return None if delay_s is None else min(delay_s, _MAX_WAIT_S)
    return None


@lru_cache(maxsize=_MAX_FIELDS)
def _names_among(names: str) -> frozenset[str]:
    """The names that are about rate limits among ``names``, which has those of all header fields of a response, one a
    line. Cached, because an upstream always sends the same ones."""
    return frozenset(name for name in names.split("\n") if _field(name) is not None)


@memoized(max_length=_MAX_NAME)
def _field(name: str) -> tuple[str, str] | None:
    """(quota, attribute) of a header field about a rate limit; None for others. Cached, because upstreams use few."""
    lower = name.lower()
    if lower in _DELAYS:
        return "", _DELAYS[lower]
    if lower == "ratelimit":
        return "", "all"
    words = _SEPARATORS.split(lower.replace("rate-limit", "ratelimit"))
    family = next((word for word in words if word in _FAMILIES), None)
    attribute = next((word for word in reversed(words) if word in _LARGEST), None)
    return None if family is None or attribute is None else (_quota_name(family, words), attribute)


def _numbers(quota: str, attribute: str, value: str, now_s: float) -> Iterable[tuple[str, str, float]]:
    """(quota, attribute, number) of what one field states."""
    if attribute == "all":
        return _structured(value)
    number = _time_s(value, now_s) if attribute == "reset" else _count(value)
    return () if number is None else ((quota, attribute, number),)


def _quota_name(family: str, words: list[str]) -> str:
    unit = _FAMILIES[family]
    if not _TOKEN_WORDS.isdisjoint(words):
        unit = "tokens"
    elif not _REQUEST_WORDS.isdisjoint(words):
        unit = "requests"
    # Each window of a unit has its own limit, and so may input tokens.
    return "-".join([unit, *(word for word in words if word in _WINDOW_WORDS or word in ("input", "output", "usage"))])


def _structured(value: str) -> Iterator[tuple[str, str, float]]:
    """``"default";r=50;t=30``: ``r`` requests remain, and the limit is full again in ``t`` seconds."""
    for item in value.split(",", _MAX_QUOTAS)[:_MAX_QUOTAS]:
        name, *parameters = (part.strip() for part in item.split(";", _MAX_PARAMETERS)[:_MAX_PARAMETERS])
        for parameter in parameters:
            key, _, text = parameter.partition("=")
            attribute = {"r": "remaining", "t": "reset", "q": "limit"}.get(key.strip())
            number = _count(text.strip())
            if attribute is not None and number is not None:
                yield f"requests-{name.strip(chr(34))}", attribute, number


def _count(value: str) -> float | None:
    """A number, such as ``1,000,000``, or the first of a list, as in ``RateLimit-Limit: 100, 100;w=60``. None for
    ``-1``, which means that there is no limit."""
    if value.isdecimal() and value.isascii():  # the usual case
        return float(value)
    value = value.strip()
    if _GROUPED.fullmatch(value):
        value = value.replace(",", "")
    found = _NUMBER.match(value)
    return float(found[0]) if found else None


def _time_s(value: str, now_s: float) -> float | None:
    """Seconds from now: ``6m0s``, ``20ms``, ``1.5``, a time since 1970, or a date."""
    value = value.strip()
    if _NUMBER.fullmatch(value):
        number = float(value)
        if number < _LATEST_DELAY_S:
            return number
        return max(0.0, (number if number < _LATEST_EPOCH_S else number / 1000) - now_s)
    return _duration_s(value) if (value and value[-1] in "smhd") else _until_s(value, now_s)


def _delay_s(value: str, now_s: float) -> float | None:
    """`Retry-After`: seconds or an HTTP date."""
    value = value.strip()
    return float(value) if _NUMBER.fullmatch(value) else _until_s(value, now_s)


def _milliseconds(value: str, default: float | None) -> float | None:
    value = value.strip()
    return float(value) / 1000 if _NUMBER.fullmatch(value) else default


def _duration_s(value: str) -> float | None:
    found = _DURATION.fullmatch(value.strip())
    if not found or not any(found.groups()):
        return None
    return sum(float(text) * unit for text, unit in zip(found.groups(), _DURATION_UNITS_S, strict=True) if text)


def _until_s(value: str, now_s: float) -> float | None:
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = parse(value)
            return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now_s)
        except (ValueError, OverflowError):
            continue
    return None
