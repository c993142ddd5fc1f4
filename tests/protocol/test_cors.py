"""CORS where the upstream decides: the fields of hits, and what is remembered of them."""

from pathlib import Path

import orjson
import pytest
from multidict import CIMultiDict

from proxy.config.settings import StoreSetting
from proxy.protocol.cors import Cors
from tests.conftest import StartProxy
from tests.embeddings.test_fast_path import Parsed, request, told, wire
from tests.support.client import Client
from tests.support.pages import (
    ALLOW_ORIGIN,
    OTHER,
    OWN_EXPOSED,
    PAGE,
    POLICIES,
    UNKNOWN,
    Browsable,
    Policy,
    abort,
    ask,
    cors,
    everyone,
    listed,
    nobody,
    preflight,
    reflects,
)
from tests.support.scripted import ScriptedUpstream, error_reply


@pytest.mark.parametrize("origin", [PAGE, UNKNOWN, "null", None])
@pytest.mark.parametrize("policy", POLICIES)
async def test_a_hit_has_the_fields_of_the_miss(
    client: Client, upstream: ScriptedUpstream, policy: Policy, origin: str | None
) -> None:
    Browsable(upstream, policy)
    miss, hit, again = [await ask(client, "x", origin) for _ in range(3)]
    assert [miss.cache, hit.cache, again.cache] == ["MISS", "HIT", "HIT"]
    assert cors(miss).get("access-control-allow-origin", [""]) == [policy(origin).get(ALLOW_ORIGIN, "")]
    expected = cors(miss)
    if policy is listed:
        expected["vary"] = ["Origin"]  # hits don't vary by what else the upstream's do
    assert cors(hit) == cors(again) == expected


@pytest.mark.parametrize("policy", [reflects, everyone])
async def test_the_cache_fields_are_exposed_where_the_page_may_read(
    client: Client, upstream: ScriptedUpstream, policy: Policy
) -> None:
    Browsable(upstream, policy)
    for answer in [await ask(client, "x", PAGE) for _ in range(2)]:
        theirs = [value for name, value in policy(PAGE).items() if name == "Access-Control-Expose-Headers"]
        assert cors(answer)["access-control-expose-headers"] == [*theirs, OWN_EXPOSED]


async def test_a_page_that_may_not_read_learns_nothing_of_what_it_could(
    client: Client, upstream: ScriptedUpstream
) -> None:
    Browsable(upstream, listed)
    await ask(client, "x", PAGE)
    refused = await ask(client, "y", UNKNOWN)
    hit = await ask(client, "y", UNKNOWN)
    assert (refused.cache, hit.cache) == ("MISS", "HIT")
    assert cors(hit) == {"vary": ["Origin"]}


async def test_pages_of_two_origins_share_entries_and_not_fields(client: Client, upstream: ScriptedUpstream) -> None:
    Browsable(upstream, reflects)
    miss = await ask(client, ["x", "a longer text"], PAGE)
    for _ in range(3):
        for origin in (PAGE, OTHER):
            hit = await ask(client, ["x", "a longer text"], origin)
            assert (hit.cache, hit.headers[ALLOW_ORIGIN]) == ("HIT", origin)
            assert hit.embeddings == miss.embeddings
    assert upstream.items == {'"x"': 2, '"a longer text"': 1}  # the upstream was asked once about the other page


async def test_a_page_of_which_the_upstream_said_nothing_is_served_while_it_is_down(
    client: Client, upstream: ScriptedUpstream
) -> None:
    await ask(client, "x", None)
    upstream.reply = abort
    hit = await ask(client, "x", PAGE)
    assert hit.headers["Cache-Status"] == "embedding-proxy; hit; detail=unvalidated"
    assert cors(hit) == {}


async def test_in_a_shared_scope_the_upstream_is_not_asked_about_a_page(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """It would be an error, and not a hit, while the upstream has no answer."""
    client = await start_proxy(shares_all=True)
    await ask(client, "x", None)
    assert (await ask(client, "x", PAGE)).cache == "HIT"
    assert len(upstream.calls) == 1


async def test_a_request_that_comes_again_from_another_page_is_not_the_same(
    client: Client, upstream: ScriptedUpstream
) -> None:
    Browsable(upstream, reflects)
    for _ in range(4):
        await ask(client, "x", PAGE)
    assert (await ask(client, "x", OTHER)).headers[ALLOW_ORIGIN] == OTHER


async def test_what_is_sent_to_everyone_holds_for_origins_not_seen_yet(
    client: Client, upstream: ScriptedUpstream
) -> None:
    served = Browsable(upstream, everyone)
    await ask(client, "x", None)
    assert (await ask(client, "x", PAGE)).headers[ALLOW_ORIGIN] == "*"
    served.policy = listed  # and when the upstream has changed its mind, no more
    await ask(client, "y", OTHER)
    assert ALLOW_ORIGIN not in (await ask(client, "x", UNKNOWN)).headers


async def test_a_hit_after_a_preflight_has_its_fields(client: Client, upstream: ScriptedUpstream) -> None:
    Browsable(upstream, reflects)
    await ask(client, "x", None)
    assert (await preflight(client)).status == 204
    hit = await ask(client, "x", PAGE)
    assert hit.cache == "HIT"
    assert cors(hit) == {
        "access-control-allow-origin": [PAGE],
        "access-control-allow-credentials": ["true"],
        "access-control-expose-headers": [OWN_EXPOSED],
        "vary": ["Origin"],
    }


async def test_a_preflight_does_not_hide_what_the_miss_told(client: Client, upstream: ScriptedUpstream) -> None:
    Browsable(upstream, everyone)
    miss = await ask(client, "x", PAGE)
    await preflight(client)
    assert cors(await ask(client, "x", PAGE)) == cors(miss)


async def test_the_upstreams_last_word_counts(client: Client, upstream: ScriptedUpstream) -> None:
    served = Browsable(upstream, nobody)
    await ask(client, "x", PAGE)
    served.policy = reflects
    await preflight(client)
    assert (await ask(client, "x", PAGE)).headers[ALLOW_ORIGIN] == PAGE
    served.policy = nobody
    await ask(client, "y", PAGE)
    assert cors(await ask(client, "x", PAGE)) == {}


async def test_an_error_of_a_gateway_that_knows_no_cors_is_not_the_upstreams_word(
    client: Client, upstream: ScriptedUpstream
) -> None:
    served = Browsable(upstream, reflects)
    await ask(client, "x", PAGE)
    upstream.reply = error_reply(502, b"<html>bad gateway</html>")
    failed = await ask(client, "y", PAGE)
    assert (failed.status, failed.headers[ALLOW_ORIGIN]) == (502, PAGE)  # so that the page can tell what failed
    upstream.reply = served
    assert (await ask(client, "x", PAGE)).headers[ALLOW_ORIGIN] == PAGE


async def test_a_hit_after_a_restart_has_the_fields(
    start_proxy: StartProxy, upstream: ScriptedUpstream, sqlite_path: Path
) -> None:
    Browsable(upstream, reflects)
    first, second = [await start_proxy(store=StoreSetting(path=sqlite_path)) for _ in range(2)]
    await ask(first, "x", PAGE)
    hit = await ask(second, "x", PAGE)
    assert hit.headers["Cache-Status"] == "embedding-proxy; hit; detail=validated"
    assert hit.headers[ALLOW_ORIGIN] == PAGE


async def test_a_request_that_repeats_to_the_byte_has_the_fields(
    client: Client, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    Browsable(upstream, everyone)
    parsed = Parsed(monkeypatch)
    async with wire(client) as line:
        answers = [await line.ask(request()) for _ in range(6)]
        assert parsed.count == 4
        assert len({told(answer) for answer in answers[1:]}) == 1
        assert b"\r\nAccess-Control-Allow-Origin: *\r\n" in answers[5]
        from_page = [await line.ask(request(orjson.dumps({"model": "m", "input": "a"}), f"Origin: {PAGE}"))]
        from_page += [await line.ask(request(orjson.dumps({"model": "m", "input": "a"}), f"Origin: {PAGE}"))]
    assert all(b"\r\nAccess-Control-Allow-Origin: *\r\n" in answer for answer in from_page)


async def test_a_page_that_repeats_to_the_byte_sees_what_changed(client: Client, upstream: ScriptedUpstream) -> None:
    served = Browsable(upstream, reflects)
    sent = request(orjson.dumps({"model": "m", "input": "a"}), f"Origin: {PAGE}")
    async with wire(client) as line:
        answers = [await line.ask(sent) for _ in range(6)]
        assert all(f"\r\nAccess-Control-Allow-Origin: {PAGE}\r\n".encode() in answer for answer in answers)
        served.policy = nobody
        await ask(client, "b", PAGE)
        assert b"Access-Control" not in await line.ask(sent)


def test_what_is_remembered_is_bounded() -> None:
    cors = Cors()
    told = CIMultiDict({ALLOW_ORIGIN: PAGE})

    def hit(page: str) -> CIMultiDict[str]:
        fields = CIMultiDict({"X-Cache": "HIT"})
        cors.finish(page, fields)
        return fields

    for number in range(5000):
        cors.learn(f"https://{number}.example", 200, told)
        hit("https://0.example")
    assert len(cors._sent) == 1024
    assert ALLOW_ORIGIN in hit("https://0.example")  # it was used all the time
    assert ALLOW_ORIGIN not in hit("https://1.example")
    cors.learn(PAGE, 200, CIMultiDict({ALLOW_ORIGIN: PAGE, "Access-Control-Expose-Headers": "x" * 5000}))
    assert cors.knows(PAGE)
    assert ALLOW_ORIGIN not in hit(PAGE)
    for page, fields in (
        ("https://" + "x" * 300, told),
        ("*", CIMultiDict({ALLOW_ORIGIN: "*"})),
        (f"{PAGE}, {OTHER}", told),
    ):
        cors.learn(page, 200, fields)
        assert cors.knows(page)  # there is nothing to ask for
        assert page not in cors._sent


def test_fields_that_can_not_be_sent_again_are_left_out() -> None:
    cors = Cors()
    cors.learn(None, 200, CIMultiDict([(ALLOW_ORIGIN.lower(), "*"), ("Access-Control-Expose-Headers", "\udcff")]))
    assert cors.hit_header_lines() == f"{ALLOW_ORIGIN}: *\r\nAccess-Control-Expose-Headers: {OWN_EXPOSED}\r\n"
    cors.learn(None, 200, CIMultiDict())
    assert cors.hit_header_lines() == ""
