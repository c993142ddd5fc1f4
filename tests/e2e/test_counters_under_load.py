"""Every counter, compared with the counts of the client and the upstream over a random load."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.conftest import StartProxy
from tests.support.client import Client, UpstreamResponse
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.scripted import Call, ScriptedUpstream

REQUESTS = 10_000 if IS_SLOW_PROFILE else 1_000
AT_ONCE = 16
MODELS = ("m", "n", "o")
REFUSED = "refused"


@dataclass
class Seen:
    """What the test's own upstream and client count."""

    requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # outcome, status, model
    items: Counter[str] = field(default_factory=Counter)  # by model, of answered requests
    bypassed: Counter[str] = field(default_factory=Counter)  # items by model
    saved: int = 0
    calls: Counter[str] = field(default_factory=Counter)  # by status, of the cached route
    sent: Counter[str] = field(default_factory=Counter)  # items by model
    billed: Counter[str] = field(default_factory=Counter)  # tokens by model


def make_request(rng: random.Random) -> dict[str, Any]:
    texts = [f"text {int(rng.expovariate(0.02))}" for _ in range(rng.choice((1, 1, 2, 3, 8, 30)))]
    body: dict[str, Any] = {"model": rng.choice(MODELS), "input": texts if len(texts) > 1 else texts[0]}
    if rng.random() < 0.05:
        body["model"] = REFUSED
    if rng.random() < 0.3:
        body["encoding_format"] = "base64"
    if rng.random() < 0.05:
        body["stream"] = True
    return body


def note(seen: Seen, body: dict[str, Any], answer: UpstreamResponse) -> None:
    outcome = "error" if answer.status != 200 and answer.cache != "BYPASS" else answer.cache.lower()
    model = body["model"] if body["model"] != REFUSED else "other"
    count = len(body["input"]) if isinstance(body["input"], list) else 1
    seen.requests[outcome, str(answer.status), model] += 1
    seen.saved += int(answer.headers["X-Cache-Saved-Tokens"])
    if outcome == "bypass":
        seen.bypassed[model] += count
    elif outcome != "error":
        seen.items[model] += count


async def test_counters_agree_with_what_was_seen(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    seen = Seen()

    def reply(call: Call) -> web.Response:
        asked = call.json
        if asked["model"] == REFUSED:
            seen.calls["404"] += "stream" not in asked
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        answer = upstream.answer_to(asked)
        if "stream" not in asked:
            seen.calls["200"] += 1
            seen.sent[asked["model"]] += len(call.items)
            seen.billed[asked["model"]] += answer["usage"]["prompt_tokens"]
        return web.json_response(answer)

    upstream.reply = reply
    client = await start_proxy(memory_bytes=500_000)  # some leave, so that more than memory is asked
    for model in MODELS:  # a model is named once it was answered, and a bypass is no answer that is read
        body = {"model": model, "input": "first"}
        note(seen, body, await client.post(body))
    rng = random.Random(6)
    pending = iter([make_request(rng) for _ in range(REQUESTS)])

    async def work() -> None:
        for body in pending:
            note(seen, body, await client.post(body))

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    await check(client, seen)


async def check(client: Client, seen: Seen) -> None:
    for (outcome, status, model), count in seen.requests.items():
        labels = {"outcome": outcome, "status": status, "model": model}
        assert await client.metric("embedding_proxy_requests_total", **labels) == count, labels
    assert await client.metric("embedding_proxy_requests_total") == sum(seen.requests.values())
    for model in MODELS:
        by_result = {
            result: await client.metric("embedding_proxy_items_total", result=result, model=model)
            for result in ("memory", "store", "duplicate", "joined", "upstream", "bypass")
        }
        assert by_result["upstream"] == seen.sent[model]
        assert by_result["bypass"] == seen.bypassed[model]
        assert sum(by_result.values()) == seen.items[model] + seen.bypassed[model]
        assert await client.metric("embedding_proxy_tokens_total", kind="billed", model=model) == seen.billed[model]
    assert await client.metric("embedding_proxy_tokens_total", kind="saved") == seen.saved
    for status, count in seen.calls.items():
        assert await client.metric("embedding_proxy_upstream_answers_total", status=status) == count
    assert await client.metric("embedding_proxy_upstream_duration_seconds_count") == sum(seen.calls.values())
    # A refused call's items were sent, too.
    assert await client.metric("embedding_proxy_upstream_batch_items_sum") >= sum(seen.sent.values())
    outcomes = Counter(outcome for outcome, _, _ in seen.requests.elements())
    for outcome, count in outcomes.items():
        assert await client.metric("embedding_proxy_request_duration_seconds_count", outcome=outcome) == count
    assert await client.metric("embedding_proxy_bypasses_total") == outcomes["bypass"]
    for gauge in ("requests_in_flight", "held_request_bytes", "upstream_queued_items"):
        assert await client.metric(f"embedding_proxy_{gauge}") == 0
