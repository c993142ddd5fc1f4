"""The questions that are put to an upstream, and the facts that follow from its answers."""

from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from proxy.inquiry import reply as replies
from proxy.inquiry.facts import BatchFact, Fact, Facts, Latency, Verdict
from proxy.inquiry.reply import Answer, Embeddings, Refusal, Reply
from proxy.protocol.provider import InputFormat, Provider
from proxy.protocol.vectors import DType

Ask = Callable[[dict[str, Any]], Awaitable[Reply]]

_TEXT, _OTHER = "The quick brown fox", "jumps over the lazy dog"
_TOKENS = [9906, 1917]
# The most tokens, in any vocabulary, of one of the texts above and of a short text in a large batch.
_TEXT_TOKENS, _SHORT_TOKENS = 12, 4
_LATENCY_CALLS = 3
_FIXED_CALLS, _FIXED_TEXTS = 13, 18
_LENGTH_FIELDS = ("dimensions", "output_dimension")
# 0 is no response; the others are about the client or its key. Other statuses, even 500, may be about the input's form.
_ABOUT_CLIENT = frozenset({0, 401, 402, 403, 407, 429})
_FLOAT_TEXTS = {
    DType.FLOAT32: "float32, written as float64",
    DType.FLOAT32_SHORTEST: "float32, in its shortest text",
    DType.FLOAT64: "float64",
}


class NoAnswer(Exception):
    """The upstream did not return one vector. The message is what it said."""


def batch_sizes(limit: int) -> list[int]:
    """The numbers of items that are tried: doubled up to ``limit``."""
    sizes = [2**power for power in range(1, limit.bit_length()) if 2**power < limit]
    return [*sizes, limit] if limit > 1 else []


def cost(limit: int) -> tuple[int, int]:
    """(calls, tokens) that an interview takes at most, with batches of up to ``limit`` items."""
    sizes = batch_sizes(limit)
    searched = max(0, limit.bit_length() - 2)  # refused calls between the last two sizes, whose items cost nothing
    half = limit // 2
    tokens = _FIXED_TEXTS * _TEXT_TOKENS + (sum(sizes) + searched * (half + limit) // 2) * _SHORT_TOKENS
    return _FIXED_CALLS + _LATENCY_CALLS + len(sizes) + searched, tokens


class Interview:
    """One upstream's model. ``ask`` sends a body to it."""

    def __init__(self, ask: Ask, provider: Provider, model: str, *, url: str, max_items: int) -> None:
        self._ask = ask
        self._provider = provider
        self._model = model
        self._url = url
        self._max_items = max_items
        self._calls = self._tokens = 0
        self._seconds: list[float] = []
        self._rate_limits: dict[str, str] = {}
        self._takes_text = True

    async def run(self) -> Facts:
        """Raises `NoAnswer` if the upstream answers neither a text nor a list of one."""
        first, text, texts = await self._first()
        encodings, base = await self._encodings(first)
        # Some providers return floats but refuse the value "float".
        floats = "float" if encodings["float"].verdict is Verdict.YES else None
        alone = [base, *[await self._one(_TEXT, encoding=floats) for _ in range(2)]]
        pair = await self._put([_TEXT, _OTHER], items=2, encoding=floats)
        twice = await self._put([_TEXT, _TEXT], items=2, encoding=floats)
        return Facts(
            url=self._url,
            provider=self._provider.name,
            model=self._model,
            model_answered=first.model,
            dimensions=first.dimensions,
            inputs={
                InputFormat.TEXT.value: text,
                InputFormat.TEXTS.value: texts,
                InputFormat.TOKENS.value: _accepted(await self._put(_TOKENS)),
                InputFormat.TOKEN_LISTS.value: _accepted(await self._put([_TOKENS])),
            },
            encodings=encodings,
            shorter={field: await self._shorter(field, first.dimensions) for field in _LENGTH_FIELDS},
            batch=await self._batches(),
            repeats_alone=_all_equal([_vector(answer, 0) for answer in alone]),
            repeats_in_batch=_all_equal([_vector(twice, 0), _vector(twice, 1)]),
            same_alone_and_in_batch=_all_equal([_vector(base, 0), _vector(pair, 0)]),
            float_text=_float_text(base),
            reports_tokens=first.total_tokens is not None,
            has_id=first.has_id,
            latency=self._latency(),
            rate_limit_headers=self._rate_limits,
            calls=self._calls,
            tokens=self._tokens,
        )

    async def _first(self) -> tuple[Embeddings, Fact, Fact]:
        """The first vector, and whether the upstream takes a text, and a list of texts."""
        alone = await self._put(_TEXT)
        if isinstance(alone, Refusal) and alone.status in _ABOUT_CLIENT:
            raise NoAnswer(alone.message)  # it would not answer the other questions either
        listed = await self._put([_TEXT])
        self._takes_text = isinstance(alone, Embeddings)
        first = alone if isinstance(alone, Embeddings) else listed
        if isinstance(first, Refusal):
            raise NoAnswer(first.message)
        return first, _accepted(alone), _accepted(listed)

    async def _encodings(self, first: Embeddings) -> tuple[dict[str, Fact], Answer]:
        """Which encodings it takes, and its answer in floats."""
        floats = await self._one(_TEXT, encoding="float")
        packed = await self._one(_TEXT, encoding="base64")
        fact = _accepted(packed)
        if isinstance(packed, Embeddings) and not packed.is_base64:
            fact = Fact(Verdict.IGNORED, "it returns numbers")
        base = floats if isinstance(floats, Embeddings) else first
        return {"float": _accepted(floats), "base64": fact}, base

    async def _shorter(self, field: str, dimensions: int) -> Fact:
        wanted = max(1, dimensions // 2)
        answer = await self._put(self._given(_TEXT), fields={field: wanted})
        if isinstance(answer, Embeddings):
            got = answer.dimensions
            return Fact(Verdict.YES if got == wanted else Verdict.IGNORED, f"{wanted} requested, {got} returned")
        return _accepted(answer)

    async def _batches(self) -> BatchFact:
        """The largest batch, by doubling, then between the last that was accepted and the first that was refused."""
        accepted, refused, detail = 1, None, ""
        for size in batch_sizes(self._max_items):
            answer = await self._batch(size)
            if isinstance(answer, Refusal):
                detail = answer.message
                refused = size if answer.is_final else None
                break
            accepted = size
        while refused is not None and refused - accepted > 1:
            size = (accepted + refused) // 2
            answer = await self._batch(size)
            if isinstance(answer, Embeddings):
                accepted = size
            elif answer.is_final:
                refused, detail = size, answer.message
            else:
                break
        return BatchFact(accepted, refused, detail)

    async def _batch(self, size: int) -> Answer:
        return await self._put([f"t{number}" for number in range(size)], items=size)

    async def _one(self, text: str, *, encoding: str | None) -> Answer:
        return await self._put(self._given(text), encoding=encoding)

    def _given(self, text: str) -> str | list[str]:
        return text if self._takes_text else [text]

    async def _put(
        self, given: Any, *, items: int = 1, encoding: str | None = None, fields: dict[str, Any] | None = None
    ) -> Answer:
        body = {"model": self._model, "input": given, **self._provider.required_fields, **(fields or {})}
        if encoding is not None:
            body["encoding_format"] = encoding
        reply = await self._ask(body)
        self._calls += 1
        answer = replies.read(reply, items=items)
        if isinstance(answer, Embeddings):
            self._tokens += answer.total_tokens or 0
            if items == 1:
                self._seconds.append(reply.seconds)
        self._rate_limits |= {name.lower(): value for name, value in reply.headers if _is_rate_limit(name)}
        return answer

    def _latency(self) -> Latency:
        return Latency(len(self._seconds), min(self._seconds), median(self._seconds), max(self._seconds))


def _accepted(answer: Answer) -> Fact:
    if isinstance(answer, Embeddings):
        return Fact(Verdict.YES)
    return Fact(Verdict.NO if answer.is_final else Verdict.UNKNOWN, answer.message)


def _vector(answer: Answer, number: int) -> Any:
    return answer.vectors[number] if isinstance(answer, Embeddings) else None


def _all_equal(found: list[Any]) -> Fact:
    if any(vector is None for vector in found):
        return Fact(Verdict.UNKNOWN, "not all of these calls were answered")
    if all(vector == found[0] for vector in found):
        return Fact(Verdict.YES, "equal in every bit")
    return Fact(Verdict.NO, "other bits for the same text")


def _float_text(answer: Answer) -> str:
    if not isinstance(answer, Embeddings) or (dtype := answer.dtype) is None:
        return "it returns base64 only"
    return _FLOAT_TEXTS.get(dtype, "integers")


def _is_rate_limit(name: str) -> bool:
    lower = name.lower().replace("rate-limit", "ratelimit")
    return "ratelimit" in lower or lower == "retry-after"
