"""A corpus sent through a proxy: what is counted, what is sent again, and when it stops."""

import asyncio
from collections.abc import Callable, Iterator

import orjson
import pytest

from proxy.filling.batches import Batch
from proxy.filling.corpus import Text
from proxy.filling.replies import Later, Reply
from proxy.filling.results import Warmed
from proxy.filling.warmer import Warmer

Answer = Callable[[list[str]], Reply | Later]


def ok(cache: str = "MISS", *, tokens: int = 5, **headers: str) -> Reply:
    body = orjson.dumps({"data": [], "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    return Reply(
        status=200, headers={"X-Cache": cache} | {n.replace("_", "-"): v for n, v in headers.items()}, body=body
    )


def failed(status: int, message: str = "no", **headers: str) -> Reply:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status=status, headers=fields, body=orjson.dumps({"error": {"message": message, "code": "c"}}))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


class FakeSender:
    """Answers by ``answer``, after the replies of ``script``."""

    def __init__(self, *script: Reply | Later, answer: Answer = lambda _: ok()) -> None:
        self.script = list(script)
        self.answer = answer
        self.sent: list[list[str]] = []
        self.under_way = self.most_under_way = 0

    async def embed(self, texts: list[str]) -> Reply | Later:
        self.sent.append(texts)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        return self.script.pop(0) if self.script else self.answer(texts)


def batches(*groups: str) -> Iterator[Batch]:
    """A batch a word, whose letters are the texts."""
    line = 0
    for group in groups:
        batch = Batch([Text(line + i, letter) for i, letter in enumerate(group, 1)])
        line += len(group)
        yield batch


async def warmed(
    sender: FakeSender, given: Iterator[Batch], *, concurrency: int = 1, clock: Clock | None = None
) -> tuple[Warmed, int]:
    """What became of them, and how far the progress bar went."""
    clock = clock or Clock()
    done = Warmed()
    progress: list[int] = []
    warmer = Warmer(sender, done, concurrency=concurrency, advance=progress.append, sleep=clock.sleep, now=clock.now)
    await warmer.run(given)
    return done, sum(progress)


async def test_hits_misses_and_billed_tokens_are_added_up() -> None:
    sender = FakeSender(ok("MISS", tokens=7), ok("HIT", tokens=4), ok("PARTIAL", tokens=2, X_Cache_Hits="1"))
    done, progress = await warmed(sender, batches("ab", "cd", "efg"))
    assert (done.hits, done.misses, done.sent, done.requests, progress) == (3, 4, 7, 3, 7)
    assert done.billed_tokens == 9  # with --usage full a hit states what it would have cost
    assert done.stopped is None


async def test_the_first_batch_goes_alone_and_the_others_together() -> None:
    sender = FakeSender()
    await warmed(sender, batches(*"abcdefghi"), concurrency=4)
    assert sorted(sender.sent) == [[letter] for letter in "abcdefghi"]
    assert sender.most_under_way == 4
    sender = FakeSender(failed(401))
    done, _ = await warmed(sender, batches(*"abcd"), concurrency=4)
    assert sender.sent == [["a"]]
    assert done.stopped == "401 no"


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_a_rate_limit_makes_all_wait_for_as_long_as_it_says(status: int) -> None:
    clock = Clock()
    sender = FakeSender(ok(), failed(status, Retry_After="17"), ok())
    done, _ = await warmed(sender, batches(*"abc"), concurrency=2, clock=clock)
    assert (done.sent, done.requests) == (3, 4)
    assert 17.0 in clock.slept
    assert sum(clock.slept) <= 34.0


async def test_without_a_delay_pauses_double() -> None:
    clock = Clock()
    sender = FakeSender(failed(429), failed(429), failed(502), Later(reason="gone", retry_after_s=None, is_limit=False))
    done, _ = await warmed(sender, batches("a"), clock=clock)
    assert done.sent == 1
    assert clock.slept == [0.5, 1.0, 2.0, 4.0]


async def test_it_says_what_it_waits_for() -> None:
    clock, reasons = Clock(), list[str]()
    sender = FakeSender(failed(429, "Rate limit reached.", Retry_After="600"), failed(502, "The upstream is gone."))
    warmer = Warmer(
        sender,
        Warmed(),
        concurrency=1,
        advance=lambda _: reasons.append("progress"),
        on_wait=reasons.append,
        sleep=clock.sleep,
        now=clock.now,
    )
    await warmer.run(batches("a", "b"))
    assert reasons == ["429 Rate limit reached.", "502 The upstream is gone.", "progress", "progress"]


async def test_an_outage_ends_it_after_a_few_attempts() -> None:
    sender = FakeSender(ok(), answer=lambda _: failed(502, "The upstream is gone."))
    done, progress = await warmed(sender, batches("ab", "c", "d"), concurrency=2)
    assert done.stopped == "502 The upstream is gone."
    assert (done.sent, progress) == (2, 2)


async def test_an_exhausted_quota_is_not_waited_for() -> None:
    body = orjson.dumps({"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}})
    sender = FakeSender(ok(), Reply(status=429, headers={"Retry-After": "1"}, body=body))
    done, _ = await warmed(sender, batches("a", "b"))
    assert done.stopped == "429 You exceeded your quota."


async def test_a_refused_text_is_found_and_the_others_are_sent() -> None:
    def answer(texts: list[str]) -> Reply:
        return failed(400, "too\nlong") if "X" in texts else ok()

    done, progress = await warmed(FakeSender(answer=answer), batches("ab", "cdXef", "gh"))
    assert (done.sent, done.refused, progress) == (8, 1, 9)
    assert [tuple(refusal) for refusal in done.refusals] == [(5, "400 too long")]
    assert done.stopped is None


async def test_requests_that_are_all_refused_end_soon() -> None:
    sender = FakeSender(answer=lambda _: failed(400, "unknown field"))
    done, _ = await warmed(sender, batches("abcdefgh", "ijkl"))
    assert done.stopped == "the first 3 texts were refused: 400 unknown field"
    assert len(sender.sent) < 10


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (ok(""), "status 200 without X-Cache, so this is not an embedding-proxy's embeddings route"),
        (
            ok("BYPASS", Cache_Status="embedding-proxy; fwd=bypass; detail=stream"),
            "the proxy relays these requests without caching (stream); see embedding-proxy explain",
        ),
        (ok("MISS", Cache_Status="p; fwd=miss; stored; detail=whole-body"), "the proxy keys these requests by their"),
        (Reply(status=404, headers={}, body=b"<html>\x1b[31m"), "404 <html>[31m"),
    ],
)
async def test_what_can_not_warm_a_cache_is_not_sent_more(reply: Reply, reason: str) -> None:
    sender = FakeSender(answer=lambda _: reply)
    done, _ = await warmed(sender, batches(*"abc"))
    assert done.stopped is not None
    assert done.stopped.startswith(reason)
    assert len(sender.sent) == 1


async def test_cancelled_it_sends_no_more() -> None:
    sender = FakeSender(ok())
    gate = asyncio.Event()

    async def hang(_: float) -> None:
        gate.set()
        await asyncio.Event().wait()

    sender.answer = lambda _: failed(502)
    done = Warmed()
    warmer = Warmer(sender, done, concurrency=2, advance=lambda _: None, sleep=hang, now=lambda: 0.0)
    running = asyncio.create_task(warmer.run(batches(*"abcdef")))
    await gate.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (done.sent, len(sender.sent)) == (1, 3)
