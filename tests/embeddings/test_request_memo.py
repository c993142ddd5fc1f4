"""A known request gets the same response as an unknown one."""

import gc
from collections import defaultdict
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from proxy.access.validations import Credential, CredentialId, CredentialScope
from proxy.embeddings.request_memo import MemoEntry, RequestMemo
from proxy.protocol import request_body
from proxy.protocol.identities import Identity
from proxy.protocol.response_spec import ResponseSpec
from proxy.protocol.vectors import Encoding
from proxy.steps import finish
from proxy.tenant import Tenant
from tests.conftest import StartProxy
from tests.support.client import Client, UpstreamResponse
from tests.support.scripted import ScriptedUpstream, error_reply

BODY = orjson.dumps({"model": "m", "input": ["a", "b", "a"], "encoding_format": "base64"})
FIELDS = st.lists(st.tuples(st.sampled_from(["authorization", "api-key", "a"]), st.text(max_size=4)), max_size=2)
FINGERPRINTED = st.tuples(st.sampled_from(["/v1/embeddings", "/embeddings"]), FIELDS, FIELDS, st.binary(max_size=4))


def fingerprint(
    memo: RequestMemo, target: str, own: list[tuple[str, str]], other: list[tuple[str, str]], body: bytes
) -> bytes:
    return finish(memo.fingerprint(target, Identity(own, other, False), body, 0))


@given(FINGERPRINTED, FINGERPRINTED)
def test_fingerprints_are_equal_for_equal_requests_only(
    first: tuple[str, list[tuple[str, str]], list[tuple[str, str]], bytes],
    second: tuple[str, list[tuple[str, str]], list[tuple[str, str]], bytes],
) -> None:
    memo = RequestMemo()
    fingerprints = [fingerprint(memo, *request) for request in (first, second)]
    assert (fingerprints[0] == fingerprints[1]) == (first == second)
    assert fingerprint(memo, *first) == fingerprints[0]
    assert fingerprint(RequestMemo(), *first) != fingerprints[0]


@pytest.mark.parametrize("at", [0, 600_000, 1_000_000])
def test_all_bytes_of_a_body_that_takes_several_steps_count(at: int) -> None:
    memo, body = RequestMemo(), bytearray(1_000_001)
    before = fingerprint(memo, "/", [], [], bytes(body))
    assert fingerprint(memo, "/", [], [], bytes(body)) == before
    body[at] = 1
    assert fingerprint(memo, "/", [], [], bytes(body)) != before


def test_the_garbage_collector_does_not_visit_what_is_known() -> None:
    spec = ResponseSpec("m", Encoding.FLOAT, (b"k" * 32,))
    credential, tenant = Credential(CredentialId(b"tenant", b"name"), CredentialScope("u", "m")), Tenant(b"t")
    origin: Any = None  # there are few
    known = MemoEntry(spec, credential, origin, tenant, watched=(), doubt=None)
    assert not any(map(gc.is_tracked, (known, spec, credential, credential.id, credential.scope, tenant)))


def test_an_entry_weighs_more_by_its_long_names() -> None:
    def weight(model: str, url: str) -> int:
        origin: Any = None  # weighs the same for all
        return MemoEntry(
            ResponseSpec(model, Encoding.FLOAT, (b"k" * 32,)),
            Credential(CredentialId(b"tenant", b"name"), CredentialScope(url, model)),
            origin,
            Tenant(b"tenant"),
            watched=(),
            doubt=None,
        ).weight_bytes

    assert weight("m" * 10**6, "u") > 10**6
    assert weight("m", "u" * 10**5) > 10**5


class Parsed:
    """Counts the request bodies that are parsed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        parse_object = request_body.parse_object

        def counting(body: bytes) -> dict[str, Any]:
            self.count += 1
            return parse_object(body)

        monkeypatch.setattr(request_body, "parse_object", counting)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Parsed:
    return Parsed(monkeypatch)


async def known(client: Client, parsed: Parsed) -> UpstreamResponse:
    """Ask until the request is known; returns the last response for which it was parsed."""
    await client.post(BODY)
    hit = await client.post(BODY)
    before = parsed.count
    assert (await client.post(BODY)).cache == "HIT"
    assert parsed.count == before
    return hit


def told(answer: UpstreamResponse) -> tuple[int, list[tuple[str, str]], bytes]:
    changing = {"date", "x-request-id"}
    return answer.status, [field for field in answer.headers.items() if field[0].lower() not in changing], answer.body


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_its_response_is_the_same(client: Client, parsed: Parsed, encoding: str) -> None:
    body = orjson.dumps({"model": "m", "input": ["a", "b", "a"], "encoding_format": encoding})
    await client.post(body)
    slow, fast = [await client.post(body) for _ in range(2)]
    assert parsed.count == 2
    assert told(slow) == told(fast)
    assert fast.headers["X-Cache-Saved-Tokens"] != "0"


async def counters(client: Client) -> dict[str, float]:
    """All that only counts: how long something took is another number each time."""
    async with client.session.get(client.proxy.admin_url + "/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    return defaultdict(
        float,
        {
            f"{sample.name} {sample.labels}": sample.value
            for family in families
            for sample in family.samples
            if sample.name.startswith("embedding_proxy_")
            and sample.name.endswith(("_total", "_seconds_count"))
            and "loop_lag" not in sample.name
        },
    )


async def test_it_is_counted_and_logged_the_same(start_proxy: StartProxy, parsed: Parsed) -> None:
    lines: list[str] = []
    client = await start_proxy(write_log=lines.append)
    await client.post(BODY)
    counted = []
    for _ in range(3):
        before = await counters(client)
        await client.post(BODY)
        after = await counters(client)
        counted.append({name: value - before[name] for name, value in after.items() if value != before[name]})
    assert parsed.count == 2
    assert counted[0] == counted[1] == counted[2]
    assert len(counted[0]) >= 6
    client.proxy.log.flush()
    assert [line.split()[1:3] + line.split()[-2:-1] for line in "".join(lines).splitlines()][1:] == [
        ["hit", "200", "m"]
    ] * 3


@pytest.mark.parametrize(
    ("change", "cache"),
    [
        ({"key": "Bearer another"}, "MISS"),
        ({"target": "/v1/embeddings?x=1"}, "MISS"),
        ({"OpenAI_Project": "p"}, "MISS"),
        ({"Cache_Control": "no-cache"}, "MISS"),
        ({"Content_Type": "text/plain"}, "BYPASS"),
        ({"Content_Digest": "sha-256=:x:"}, "BYPASS"),
        ({"Content_Encoding": "br"}, "BYPASS"),
    ],
)
async def test_one_that_differs_in_anything_is_not_known(
    client: Client, parsed: Parsed, change: dict[str, Any], cache: str
) -> None:
    await known(client, parsed)
    assert (await client.post(BODY, **change)).cache == cache


async def test_entries_past_their_ttl_are_fetched_again(start_proxy: StartProxy, parsed: Parsed) -> None:
    now = [1000.0]
    client = await start_proxy(clock=lambda: now[0], ttl_s=60.0)
    await known(client, parsed)
    now[0] += 61.0
    assert (await client.post(BODY)).cache == "MISS"
    assert (await client.post(BODY)).cache == "HIT"


async def test_a_credential_that_was_refused_is_asked_about(
    client: Client, upstream: ScriptedUpstream, parsed: Parsed
) -> None:
    await known(client, parsed)
    upstream.reply = error_reply(401, {"error": {"message": "no"}})
    assert (await client.embed("new")).status == 401
    assert (await client.post(BODY)).status == 401


async def test_what_memory_has_lost_is_looked_for(client: Client, parsed: Parsed) -> None:
    await known(client, parsed)
    client.proxy.cache.memory._entries.clear()
    assert (await client.post(BODY)).cache == "MISS"


async def test_no_text_and_no_credential_is_kept(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    monkeypatch.setattr(RequestMemo, "put", lambda _, mark, known: kept.extend([mark, known]))
    for _ in range(2):
        await client.embed(["a canary of a text"])
    assert len(kept) == 2
    assert "canary" not in repr(kept)
    assert "sk-test" not in repr(kept)
