"""Texts with colliding XXH3 hashes are two items, each with its own vector."""

from pathlib import Path

import orjson
import pytest
import xxhash

from proxy.config.settings import StoreSetting
from proxy.protocol import embedding_request, keys, request_body
from proxy.protocol.providers import GENERIC
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.scripted import ScriptedUpstream, vector
from tests.support.xxh3_collisions import pairs

PAIRS = 800
PER_REQUEST = 400


@pytest.fixture(scope="module")
def planted() -> list[tuple[str, str]]:
    return list(pairs(PAIRS, seed=1))


def test_text_pairs_collide(planted: list[tuple[str, str]]) -> None:
    for first, second in planted:
        assert first != second
        assert len(first) == len(second)
        assert (first + second).isascii()
        assert (first + second).isprintable()
        for digest in (xxhash.xxh3_64_digest, xxhash.xxh3_128_digest):
            assert digest(first.encode()) == digest(second.encode())
    assert len({text for pair in planted for text in pair}) == 2 * PAIRS


def test_colliding_texts_have_separate_keys(planted: list[tuple[str, str]]) -> None:
    texts = [text for pair in planted for text in pair]
    body = orjson.dumps({"model": "m", "input": texts})
    asked = embedding_request.parse_request(body, request_body.parse_object(body), GENERIC)
    assert len(set(keys.derive(asked, url="http://h", scope=[], vector_headers=[], epoch=0))) == 2 * PAIRS


async def cross_reads(client: Client, texts: list[str]) -> int:
    """How many texts were answered with other vectors than theirs."""
    wrong = 0
    for start in range(0, len(texts), PER_REQUEST):
        asked = texts[start : start + PER_REQUEST]
        answer = await client.embed(asked, encoding_format="base64")
        assert answer.status == 200
        own = [vector("m", text, 16).tolist() for text in asked]
        wrong += sum(given != right for given, right in zip(answer.vectors, own, strict=True))
    return wrong


@pytest.mark.parametrize("order", ["together", "apart"])
async def test_colliding_texts_get_their_own_vectors(
    start_proxy: StartProxy, upstream: ScriptedUpstream, sqlite_path: Path, planted: list[tuple[str, str]], order: str
) -> None:
    firsts, seconds = map(list, zip(*planted, strict=True))
    vectors = {tuple(vector("m", text, 16).tolist()) for text in firsts + seconds}
    assert len(vectors) == 2 * PAIRS  # else no cross-read would show
    texts = [text for pair in planted for text in pair] if order == "together" else firsts + seconds
    store = StoreSetting(path=sqlite_path)
    client = await start_proxy(store=store)
    for _ in ("miss", "hit"):
        assert await cross_reads(client, texts) == 0
    assert len(upstream.items) == sum(upstream.items.values()) == 2 * PAIRS
    # Another process' memory is empty: what this one says is what was stored.
    restarted = await start_proxy(store=store)
    await restarted.embed("x")  # its credential is asked about
    sent = len(upstream.calls)
    assert await cross_reads(restarted, texts) == 0
    assert len(upstream.calls) == sent
