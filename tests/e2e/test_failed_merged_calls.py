"""After a failed merged call, each request gets its own result; a response to a part is never relayed."""

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web

from proxy.config.settings import UpstreamSetting
from tests.conftest import StartProxy
from tests.support.client import Client, UpstreamResponse
from tests.support.gate import Gate
from tests.support.in_flight import waiting
from tests.support.scripted import Call, Reply, ScriptedUpstream, error_reply

CUT = 0  # in place of a status


async def merged(
    client: Client, upstream: ScriptedUpstream, inputs: list[object], reply: Reply
) -> list[UpstreamResponse]:
    """The answers to requests that leave in one call; ``reply`` answers it and all that come after."""
    gate = Gate(upstream)
    first = asyncio.create_task(client.embed(f"before {inputs}"))
    await gate.calls(1)
    rest = [asyncio.create_task(client.post({"model": "m", "input": given})) for given in inputs]
    await waiting(client, 1 + len(rest))
    upstream.reply = reply
    gate.open()
    await first
    return [await one for one in rest]


def lengths(call: Call, status: int = 200) -> web.Response:
    """The vector of a text is its length: nobody can mistake another's for it."""
    data = [{"index": i, "embedding": [len(text), 1]} for i, text in enumerate(call.items)]
    return web.json_response(
        {"data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}, status=status
    )


def failing_on(is_bad: Callable[[Call], bool], status: int, **headers: str) -> Reply:
    def reply(call: Call) -> web.Response:
        if not is_bad(call):
            return lengths(call)
        if status == CUT:
            assert call.request.transport is not None
            call.request.transport.abort()
        return web.json_response({"error": {"message": f"no: {call.items}"}}, status=status or 500, headers=headers)

    return reply


def has_bad(call: Call) -> bool:
    return any("BAD" in text for text in call.items)


def is_list(call: Call) -> bool:
    return isinstance(call.json["input"], list)


# --- other 2xx


@pytest.mark.parametrize("status", [200, 201, 202, 203, 226, 246, 299])
async def test_merged_call_with_any_2xx_gives_each_request_its_vectors(
    client: Client, upstream: ScriptedUpstream, status: int
) -> None:
    answers = await merged(client, upstream, ["xx", "yyy", "zzzz"], lambda call: lengths(call, status))
    assert [answer.embeddings for answer in answers] == [[[2, 1]], [[3, 1]], [[4, 1]]]
    assert {answer.status for answer in answers} == {status}
    again = await client.embed("xx")
    assert again.cache == ("HIT" if status in {200, 201} else "MISS")


@pytest.mark.parametrize("status", [201, 203, 246])
async def test_2xx_to_a_part_is_not_relayed_for_the_whole(
    client: Client, upstream: ScriptedUpstream, status: int
) -> None:
    upstream.reply = lengths
    await client.embed("a")
    upstream.reply = lambda call: lengths(call, status)
    assert (await client.embed(["c", "c", "bbb"])).embeddings == [[1, 1], [1, 1], [3, 1]]
    assert (await client.embed(["a", "bb"])).embeddings == [[1, 1], [2, 1]]


@pytest.mark.parametrize("status", [201, 204, 246])
@pytest.mark.parametrize("shares_all", [False, True])
async def test_any_2xx_to_a_validation_probe_is_not_relayed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, status: int, shares_all: bool
) -> None:
    now_s = [0.0]
    client = await start_proxy(shares_all=shares_all, monotonic=lambda: now_s[0])
    upstream.reply = lengths
    await client.embed(["a", "bb", "ccc"])
    now_s[0] += 10_000
    before = len(upstream.calls)
    upstream.reply = lambda call: lengths(call, status) if status != 204 else web.Response(status=204)
    answer = await client.embed(["a", "bb", "ccc"])
    assert (answer.status, answer.embeddings) == (200, [[1, 1], [2, 1], [3, 1]])
    assert [call.items for call in upstream.calls[before:]] == [["a"]]


async def test_empty_response_to_the_clients_own_body_is_relayed(client: Client, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda _: web.Response(status=204)
    assert (await client.embed("a")).status == 204


# --- one request's fault is not another's


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422, 424, 500, 502, 504, CUT])
async def test_bad_text_does_not_fail_merged_requests(client: Client, upstream: ScriptedUpstream, status: int) -> None:
    answers = await merged(client, upstream, ["good 1", "BAD", "good 22"], failing_on(has_bad, status))
    assert [answer.status for answer in answers] == [200, status or 502, 200]
    assert [answers[0].embeddings, answers[2].embeddings] == [[[6, 1]], [[7, 1]]]
    if status != CUT:
        assert answers[1].json["error"]["message"] == "no: ['BAD']"
    assert [call.items for call in upstream.calls if len(call.items) == 1].count(["BAD"]) == 1


@pytest.mark.parametrize("code", [400, 500, 502, "context_length_exceeded"])
async def test_error_in_a_200_fails_only_its_request(client: Client, upstream: ScriptedUpstream, code: object) -> None:
    def reply(call: Call) -> web.Response:
        return web.json_response({"error": {"code": code, "message": "no"}}) if has_bad(call) else lengths(call)

    answers = await merged(client, upstream, ["good 1", "BAD", "good 22"], reply)
    assert [answer.embeddings for answer in (answers[0], answers[2])] == [[[6, 1]], [[7, 1]]]
    assert (answers[1].status, answers[1].json) == (200, {"error": {"code": code, "message": "no"}})


async def test_403_about_a_text_does_not_invalidate_merged_credentials(
    client: Client, upstream: ScriptedUpstream
) -> None:
    upstream.reply = lengths
    await client.embed("cached")
    await merged(client, upstream, ["good", "ugly"], failing_on(is_list, 403))
    calls = len(upstream.calls)
    assert (await client.embed("cached")).headers["Cache-Status"] == "embedding-proxy; hit"
    assert len(upstream.calls) == calls


@pytest.mark.parametrize(
    ("status", "headers"),
    [(401, {}), (429, {}), (503, {}), (529, {}), (500, {"Retry-After": "7"}), (400, {"Retry-After": "7"})],
)
@pytest.mark.relays_refusals
async def test_failure_common_to_all_is_not_retried(
    client: Client, upstream: ScriptedUpstream, status: int, headers: dict[str, str]
) -> None:
    sent = {"x-ratelimit-remaining-requests": "0", "x-debug-input": "secret", **headers}
    answers = await merged(client, upstream, ["one", "two"], failing_on(lambda _: True, status, **sent))
    assert len(upstream.calls) == 2
    for answer in answers:
        assert answer.status == status
        assert answer.headers.get("Retry-After") == headers.get("Retry-After")
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert "x-debug-input" not in answer.headers
        assert b"one" not in answer.body.replace(b"of several", b"")
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}


@pytest.mark.relays_refusals
async def test_merged_429_keeps_documented_error_codes(client: Client, upstream: ScriptedUpstream) -> None:
    error = {"message": "quoting one", "type": "insufficient_quota", "code": "one"}
    answers = await merged(client, upstream, ["one", "two"], error_reply(429, {"error": error}))
    assert [(answer.json["error"]["type"], answer.json["error"]["code"]) for answer in answers] == [
        ("insufficient_quota", "upstream_error")
    ] * 2


@pytest.mark.parametrize("status", [400, 500, 501, CUT])
async def test_upstream_without_lists_serves_concurrent_single_texts(
    client: Client, upstream: ScriptedUpstream, status: int
) -> None:
    reply = failing_on(is_list, status)
    for texts in (["a", "bb"], ["ccc", "dddd"], ["eeeee", "ffffff"]):
        answers = await merged(client, upstream, list(texts), reply)
        assert [answer.embeddings for answer in answers] == [[[len(text), 1]] for text in texts]
    lists = sum(is_list(call) for call in upstream.calls)
    # Then it is known. A 5xx may be chance, and a call that a kept connection broke under is sent once more.
    assert lists in {400: {1}, CUT: {2, 3, 4}}.get(status, {2})


async def test_too_large_merge_lowers_the_merge_limit(client: Client, upstream: ScriptedUpstream) -> None:
    def reply(call: Call) -> web.Response:
        return lengths(call) if len(call.items) <= 2 else web.json_response({"error": {}}, status=413)

    for group in ("abcd", "efgh", "ijkl"):
        answers = await merged(client, upstream, [text * 3 for text in group], reply)
        assert [answer.embeddings for answer in answers] == [[[3, 1]]] * 4
    assert [len(call.items) for call in upstream.calls if len(call.items) > 2] == [4]


@pytest.mark.parametrize("status", [500, 502, CUT])
@pytest.mark.parametrize(
    ("requests", "at_once"),
    [(60, 3), (100, 20), (200, 200), *(pytest.param(400, n, marks=pytest.mark.slow) for n in (3, 20, 200))],
)
async def test_outage_does_not_multiply_calls(
    client: Client, upstream: ScriptedUpstream, status: int, requests: int, at_once: int
) -> None:
    upstream.reply = failing_on(lambda _: True, status)
    for start in range(0, requests, at_once):
        answers = await asyncio.gather(*(client.embed(f"text {start + i}") for i in range(at_once)))
        assert {answer.status for answer in answers} == {status or 502}
    assert len(upstream.calls) <= 1.1 * requests


@pytest.mark.parametrize("status", [500, 502, CUT])
@pytest.mark.parametrize("at_once", [1, 2, 3, 10])
async def test_outage_does_not_multiply_calls_of_partial_hits(
    client: Client, upstream: ScriptedUpstream, status: int, at_once: int
) -> None:
    upstream.reply = lengths
    await client.embed("cached")
    upstream.reply = failing_on(lambda _: True, status)
    for start in range(0, 60, at_once):
        answers = await asyncio.gather(*(client.embed(["cached", f"text {start + i}"]) for i in range(at_once)))
        assert {answer.status for answer in answers} == {status or 502}
    assert len(upstream.calls) <= 1.1 * 60


async def test_merging_stops_if_merged_responses_cannot_be_split(client: Client, upstream: ScriptedUpstream) -> None:
    """As with sparse weights, tokens per item, and whatever else an entry can't hold."""

    def reply(call: Call) -> web.Response:
        data = [{"index": i, "embedding": [len(text), 1], "tokens": 1} for i, text in enumerate(call.items)]
        return web.json_response({"data": data, "model": "m"})

    for group in ("abcd", "efgh", "ijkl", "mnop"):
        answers = await merged(client, upstream, [text * 3 for text in group], reply)
        assert [answer.embeddings for answer in answers] == [[[3, 1]]] * 4
    assert [len(call.items) for call in upstream.calls if len(call.items) > 1] == [4, 2, 2]


@pytest.mark.parametrize("status", [400, 404, 409, 424, 429, 500, 503, 529])
@pytest.mark.parametrize("scope", ["held key", "share all"])
@pytest.mark.relays_refusals
async def test_error_text_of_a_call_is_not_shown_to_joined_clients(
    start_proxy: StartProxy, upstream: ScriptedUpstream, status: int, scope: str
) -> None:
    """Bob asks only `common`, and joins Alice's call."""
    key = "sk-held" if scope == "held key" else None
    setting = UpstreamSetting(name="s", base_url=upstream.base_url, key=key)
    client = await start_proxy(upstream=setting, shares_all=scope == "share all")
    upstream.reply = lengths
    for name in ("Alice", "Bob"):
        await client.post({"model": "m", "input": name}, key=f"Bearer {name}")
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def quoting(call: Call) -> web.StreamResponse:
        if len(call.items) == 1:
            return lengths(call)
        arrived.set()
        await go_on.wait()
        said = f"while embedding {call.items}"
        return web.json_response({"error": {"message": said}}, status=status, headers={"x-debug-input": said})

    upstream.reply = quoting
    body = {"model": "m", "input": ["common", "private to Alice"]}
    alice = asyncio.create_task(client.post(body, key="Bearer Alice"))
    await arrived.wait()
    bob = asyncio.create_task(client.post({"model": "m", "input": "common"}, key="Bearer Bob"))
    await waiting(client, 2)
    go_on.set()
    told, joined = await alice, await bob
    assert "private to Alice" in told.text
    assert "private to Alice" not in joined.text + str(joined.headers)
    assert joined.status == (status if status in {503, 529} else 200)
