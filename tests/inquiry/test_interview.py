"""What is found out about each provider's emulator, and about servers that refuse in odd ways."""

import tomllib
from typing import Any

import orjson
import pytest
from aiohttp import web

from proxy.config.provider_tables import parse_providers
from proxy.config.settings import UpstreamSetting
from proxy.config.upstream_tables import parse_upstreams
from proxy.inquiry import interview
from proxy.inquiry.advice import advise
from proxy.inquiry.client import asking
from proxy.inquiry.facts import Facts, Verdict
from proxy.inquiry.interview import Interview, NoAnswer
from proxy.protocol.provider import InputFormat
from proxy.protocol.providers import GENERIC, PROVIDERS
from tests.support.emulators import EMULATORS
from tests.support.emulators.base import KEY, Emulator
from tests.support.scripted import Call, Reply, ScriptedUpstream, error_reply


def setting_of(upstream: ScriptedUpstream, emulator: Emulator | None = None) -> UpstreamSetting:
    if emulator is None:
        return UpstreamSetting(name="odd.example", base_url=upstream.base_url)
    base_url = upstream.base_url.removesuffix("/v1") + emulator.base
    return UpstreamSetting(name=emulator.name, base_url=base_url, provider=PROVIDERS[emulator.name])


async def found(
    upstream: ScriptedUpstream, *, emulator: Emulator | None = None, max_items: int = 16, model: str = "m"
) -> Facts:
    setting = setting_of(upstream, emulator)
    target = "/v1/embeddings" if emulator is None else emulator.target
    url = upstream.base_url.removesuffix("/v1") + target
    async with asking(setting, url, KEY) as ask:
        asked = Interview(ask, setting.provider, model, url=url, max_items=max_items)
        facts = await asked.run()
    calls, tokens = interview.cost(max_items)
    assert len(upstream.calls) == facts.calls <= calls
    assert facts.tokens <= tokens
    return facts


@pytest.mark.parametrize("name", sorted(EMULATORS))
async def test_each_provider_is_as_its_row_says(upstream: ScriptedUpstream, name: str) -> None:
    emulator = EMULATORS[name]
    upstream.reply = emulator.answer
    row = PROVIDERS[name]
    facts = await found(upstream, emulator=emulator, model=emulator.models[0] if emulator.models else "m")
    for own in (InputFormat.TEXT, InputFormat.TEXTS, InputFormat.TOKENS, InputFormat.TOKEN_LISTS):
        is_taken = facts.inputs[own.value].verdict is Verdict.YES
        assert is_taken or own not in row.inputs, own
    assert facts.dimensions == emulator.native
    assert facts.batch.largest_accepted == 16
    assert facts.repeats_alone.verdict is Verdict.YES
    assert facts.encodings["base64"].verdict is not Verdict.UNKNOWN
    expected = "shortest" if emulator.floats == "shortest" else "float64"
    assert emulator.is_half or expected in facts.float_text
    if emulator.length_field:
        assert facts.shorter[emulator.length_field].verdict in {Verdict.YES, Verdict.NO}


@pytest.mark.parametrize("name", sorted(EMULATORS))
async def test_the_advice_is_a_file_that_the_proxy_accepts(upstream: ScriptedUpstream, name: str) -> None:
    emulator = EMULATORS[name]
    upstream.reply = emulator.answer
    facts = await found(upstream, emulator=emulator, model=emulator.models[0] if emulator.models else "m")
    advice = advise(facts, setting_of(upstream, emulator), key_env="API_KEY")
    file = tomllib.loads(advice.toml)
    rows = parse_providers(file.get("providers", {}), "f")
    [setting] = parse_upstreams(file["upstream"], rows, {"API_KEY": KEY}, "f")
    assert setting.base_url == setting_of(upstream, emulator).base_url
    assert setting.key == KEY
    if not advice.needs_file:
        assert advice.serve.startswith(f"embedding-proxy serve --upstream {setting.base_url}")
        assert advice.serve.endswith(f"--provider {name} --upstream-key-env API_KEY")


# --- differences from the row


async def test_a_limit_on_items_is_found_exactly(upstream: ScriptedUpstream) -> None:
    def limited(call: Call) -> web.Response:
        if len(call.items) > 11:
            return web.json_response({"error": {"message": "too many\x1b items"}}, status=422)
        return upstream.embed(call)

    upstream.reply = limited
    facts = await found(upstream, max_items=64)
    assert (facts.batch.largest_accepted, facts.batch.smallest_refused) == (11, 12)
    assert facts.batch.detail == "422: too many items"
    advice = advise(facts, setting_of(upstream), key_env=None)
    assert advice.needs_file
    file = tomllib.loads(advice.toml)
    assert file["providers"] == {"my-odd-example": {"like": "generic", "max_items": 11}}
    assert parse_providers(file["providers"], "f")["my-odd-example"].limits.items == 11


async def test_forms_that_are_refused_leave_the_row(upstream: ScriptedUpstream) -> None:
    def picky(call: Call) -> web.Response:
        given = call.json["input"]
        if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
            return web.json_response({"detail": [{"msg": "a list of strings"}]}, status=500)
        if call.json.get("encoding_format") == "base64":
            return web.json_response({"error": "no"}, status=400)
        return upstream.embed(call)

    upstream.reply = picky
    facts = await found(upstream)
    assert facts.inputs["text"].verdict is Verdict.UNKNOWN  # 500 may be anything
    assert facts.inputs["text"].detail == "500: a list of strings"
    assert facts.inputs["texts"].verdict is Verdict.YES
    assert facts.encodings["base64"].verdict is Verdict.NO
    file = tomllib.loads(advise(facts, setting_of(upstream), key_env=None).toml)
    row = parse_providers(file["providers"], "f")["my-odd-example"]
    assert row.encoding["encoding_format"] == {"float"}


async def test_a_server_that_reads_tokens_as_items(upstream: ScriptedUpstream) -> None:
    def naive(call: Call) -> web.Response:
        given = call.json["input"]
        items = given if isinstance(given, list) else [given]
        data = [{"index": i, "embedding": [0.5, 1.0]} for i in range(len(items))]
        return web.json_response({"data": data})

    upstream.reply = naive
    facts = await found(upstream)
    assert facts.inputs["tokens"].verdict is Verdict.NO
    assert facts.inputs["tokens"].detail == "200, but 2 vectors for 1 item"
    assert facts.encodings["base64"].verdict is Verdict.IGNORED
    assert facts.shorter["dimensions"].detail == "1 requested, 2 returned"
    assert (facts.model_answered, facts.reports_tokens) == (None, False)
    inputs = tomllib.loads(advise(facts, setting_of(upstream), key_env=None).toml)["providers"]["my-odd-example"]
    assert inputs["inputs"] == ["text", "texts", "token lists"]


async def test_vectors_that_change_from_call_to_call_are_noticed(upstream: ScriptedUpstream) -> None:
    count = 0

    def noisy(call: Call) -> web.Response:
        nonlocal count
        count += 1
        data = [{"index": i, "embedding": [0.5, 1.0 + count / 8]} for i in range(len(call.items))]
        return web.json_response({"data": data}, headers={"X-RateLimit-Limit-Requests": "9"})

    upstream.reply = noisy
    facts = await found(upstream)
    assert facts.repeats_alone.verdict is Verdict.NO
    assert facts.repeats_in_batch.verdict is Verdict.YES
    assert facts.same_alone_and_in_batch.verdict is Verdict.NO
    assert facts.rate_limit_headers == {"x-ratelimit-limit-requests": "9"}


async def test_a_rate_limit_in_between_says_nothing_of_batches(upstream: ScriptedUpstream) -> None:
    def busy(call: Call) -> web.Response:
        if len(call.items) > 2:
            return web.json_response({"error": {"message": "slow down"}}, status=429)
        return upstream.embed(call)

    upstream.reply = busy
    facts = await found(upstream)
    assert (facts.batch.largest_accepted, facts.batch.smallest_refused) == (2, None)
    assert not advise(facts, setting_of(upstream), key_env=None).needs_file


# --- no vectors at all


def _drop(call: Call) -> web.Response:
    assert call.request.transport is not None
    call.request.transport.abort()
    return web.Response()


def _answers(said: Any, status: int = 200) -> Reply:
    return lambda _: web.Response(
        status=status, body=said if isinstance(said, bytes) else orjson.dumps(said), content_type="application/json"
    )


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error_reply(401, {"error": {"message": "Bad key"}}), "401: Bad key"),
        (error_reply(404, b"<html>not here</html>"), "404: <html>not here</html>"),
        (error_reply(429, {"error": "wait"}), "429: wait"),
        (error_reply(500, b""), "500: "),
        (lambda _: web.Response(status=307, headers={"Location": "https://h/x"}), "307: redirects to https://h/x"),
        (_answers(b"<html>"), "200, but the body is not JSON"),
        (_answers({"error": {"message": "no\nmodel"}}), "200, but an error: no model"),
        (_answers({"data": None}), "200, but no list of embeddings"),
        (_answers([]), "200, but no list of embeddings"),
        (_answers({"data": [{"embedding": []}]}), "200, but a vector is not an array of numbers"),
        (_answers({"data": [{"embedding": [0.0]}]}), "200, but a vector is all zero"),
        (_answers({"data": [{"embedding": "AAA"}]}), "200, but a vector is base64 that doesn't decode"),
        (_answers({"data": [{"embedding": [1.5], "index": 3}]}), "200, but the indexes of the vectors are not 0, 1, …"),
        (_answers({"data": [{"embedding": {"a": 1}}]}), "200, but a vector is neither numbers nor base64"),
        (_drop, "Server disconnected"),
    ],
)  # fmt: skip
async def test_why_there_is_no_vector(upstream: ScriptedUpstream, reply: Reply, message: str) -> None:
    upstream.reply = reply
    with pytest.raises(NoAnswer) as error:
        await found(upstream)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_batches_are_doubled_up_to_the_limit() -> None:
    assert interview.batch_sizes(96) == [2, 4, 8, 16, 32, 64, 96]
    assert interview.batch_sizes(4) == [2, 4]
    assert interview.batch_sizes(1) == []
    assert GENERIC.limits.items > 1_000_000
