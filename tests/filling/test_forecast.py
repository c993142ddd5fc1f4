"""What a corpus would cost, without asking the upstream: against a real proxy."""

from typing import Any

import orjson
import pytest

from proxy.config.settings import UpstreamSetting
from proxy.filling.batches import Batch, batched
from proxy.filling.corpus import Text
from proxy.filling.embedding_call import EmbeddingCall
from proxy.filling.forecast import forecast
from proxy.filling.replies import Later, NotTold, Reply, Stopped
from proxy.filling.results import Forecast
from proxy.filling.sender import connected
from tests.conftest import StartProxy
from tests.support.client import KEY, Client
from tests.support.scripted import ScriptedUpstream


def texts(letters: str) -> list[Text]:
    return [Text(line, letter * 8) for line, letter in enumerate(letters, 1)]


async def ask(base_url: str, letters: str, *, key: str = KEY, **changes: Any) -> Forecast:
    call = EmbeddingCall(url=f"{base_url}/embeddings", model="m", headers=[("Authorization", key)], **changes)
    async with connected(call, connections=1, timeout_s=60.0) as sender:
        return await forecast(sender, batched(texts(letters), max_items=4, max_chars=10**6), advance=lambda _: None)


async def test_it_counts_what_is_missing_and_asks_the_upstream_nothing(
    client: Client, upstream: ScriptedUpstream
) -> None:
    await client.embed([letter * 8 for letter in "acf"])
    assert await ask(client.proxy.base_url, "abcdefg") == Forecast(cached=3, missing=4, missing_tokens=8)
    assert await ask(client.proxy.base_url, "acf") == Forecast(cached=3)
    assert await ask(client.proxy.base_url, "acf", dimensions=8) == Forecast(missing=3, missing_tokens=6)
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("is_shared", [False, True])
async def test_it_learns_nothing_of_another_credentials_items(
    start_proxy: StartProxy, upstream: ScriptedUpstream, *, is_shared: bool
) -> None:
    client = await start_proxy(shares_all=is_shared)
    await client.embed(["a" * 8, "b" * 8])
    sent = len(upstream.calls)
    with pytest.raises(Stopped, match="send something with it first, as with --limit 1"):
        await ask(client.proxy.base_url, "ab", key="Bearer another")
    assert len(upstream.calls) == sent


async def test_a_proxy_that_has_the_key_says_it_at_once(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    client = await start_proxy(upstream=UpstreamSetting(name="s", base_url=upstream.base_url, key="held"))
    assert await ask(client.proxy.base_url, "ab") == Forecast(missing=2, missing_tokens=4)
    assert upstream.calls == []


async def test_what_is_no_proxy_is_sent_one_text(upstream: ScriptedUpstream) -> None:
    with pytest.raises(Stopped, match="status 200 without X-Cache, so this is not an embedding-proxy"):
        await ask(upstream.base_url, "abcd")
    assert [call.items for call in upstream.calls] == [["a" * 8]]


async def test_no_reply_is_asked_for_again_and_then_said() -> None:
    paused: list[float] = []

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    class Silent:
        def __init__(self, *replies: Reply | Later) -> None:
            self.replies = list(replies)

        async def ask(self, _: list[str]) -> Reply | Later:
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    busy = Reply(status=503, headers={"Retry-After": "3"}, body=b"{}")
    gone = Later(reason="can't reach the proxy", retry_after_s=None, is_limit=False)
    cached = Reply(status=204, headers={"X-Cache": "HIT"}, body=b"")
    batch = Batch(texts("a"))
    reasons: list[str] = []
    found = await forecast(
        Silent(busy, gone, cached),
        [batch],
        advance=lambda _: None,
        on_wait=reasons.append,
        sleep=sleep,
        now=lambda: 0.0,
    )
    assert (found, paused) == (Forecast(cached=1), [3.0, 1.0])
    assert reasons == ["the proxy is overloaded: 503", "can't reach the proxy"]
    with pytest.raises(Stopped, match="can't reach the proxy"):
        await forecast(Silent(gone), [batch], advance=lambda _: None, sleep=sleep, now=lambda: 0.0)


async def test_of_several_workers_one_that_knows_the_credential_is_found() -> None:
    class Workers:
        def __init__(self, *, knowing: int) -> None:
            self.asked = 0
            self.knowing = knowing

        async def ask(self, _: list[str]) -> Reply | Later:
            self.asked += 1
            told = {"items": 1, "missing": [0]} if self.asked == self.knowing else {}
            body = orjson.dumps({"error": {"code": "not_cached", "message": "No.", **told}})
            return Reply(status=504, headers={}, body=body)

    async def sleep(_: float) -> None:
        raise AssertionError

    found = await forecast(Workers(knowing=9), [Batch(texts("a"))], advance=lambda _: None, sleep=sleep)
    assert found.missing == 1
    unknown = Workers(knowing=0)
    with pytest.raises(NotTold):
        await forecast(unknown, [Batch(texts("a"))], advance=lambda _: None, sleep=sleep)
    assert unknown.asked == 24
