import asyncio
from typing import Any

import numpy as np
import orjson
import pybase64
import pytest
from aiohttp import ClientSession, UnixConnector, web
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream import demo


@given(st.one_of(st.text(min_size=1), st.lists(st.integers(0, 2**63 - 1), min_size=1)), st.integers(1, 4096))
def test_vector_has_requested_dimensions_and_unit_length(item: Any, dimensions: int) -> None:
    vector = demo.embed(item, dimensions)
    assert vector.shape == (dimensions,)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
    assert vector.all()  # a row of zeros looks like something broken
    assert np.array_equal(vector, demo.embed(item, dimensions))


def test_similar_spellings_get_similar_vectors() -> None:
    near, far = demo.embed("the quick brown fox", 1536), demo.embed("zzz 123 %%%", 1536)
    this = demo.embed("the quick brown dog", 1536)
    assert float(this @ near) > float(this @ far) + 0.3


@pytest.mark.parametrize("dimensions", [256, 1536, 3072])
def test_shared_words_increase_similarity(dimensions: int) -> None:
    asked, related, unrelated = (
        demo.embed(text, dimensions) for text in ("reset my password", "my password is lost", "quarterly tax figures")
    )
    assert float(asked @ related) > float(asked @ unrelated) + 0.2


def test_vector_matches_pinned_value() -> None:
    """Caches made with the demo outlive upgrades: other vectors need another `DEMO_BASE_URL`."""
    assert demo.embed("hello, world", 8).tolist() == pytest.approx(
        [0.10760947, -0.72575808, -0.36291179, 0.15869613, 0.22916953, -0.18764524, -0.30579952, 0.35151553]
    )


@pytest.fixture
async def post(tmp_path: Any) -> Any:
    """Posts to a demo that listens, as the proxy would."""
    runner = web.AppRunner(demo.make_app())
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    async with ClientSession(connector=UnixConnector(str(tmp_path / "s"))) as session:

        async def post(body: bytes) -> tuple[int, Any]:
            async with session.post("http://demo/v1/embeddings", data=body) as response:
                return response.status, await response.json()

        yield post
    await runner.cleanup()
    await asyncio.sleep(0)


async def test_float_and_base64_encode_the_same_vector(post: Any) -> None:
    _, floats = await post(b'{"model":"m","input":"x"}')
    _, base64 = await post(b'{"model":"m","input":["x"],"encoding_format":"base64"}')
    decoded = np.frombuffer(pybase64.b64decode(base64["data"][0]["embedding"]), "<f4")
    assert np.array_equal(decoded, np.array(floats["data"][0]["embedding"], np.float32))
    assert decoded.shape == (1536,)
    assert decoded.all()


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("body", b"{"),
        ("model", b"[]"),
        ("model", b'{"input":"x"}'),
        ("input", b'{"model":"m"}'),
        ("input", b'{"model":"m","input":""}'),
        ("input", b'{"model":"m","input":["x",""]}'),
        ("input", b'{"model":"m","input":[[1],[-1]]}'),
        ("input", b'{"model":"m","input":[0,"x"]}'),
        ("input", orjson.dumps({"model": "m", "input": ["x"] * 2049})),
        ("dimensions", b'{"model":"m","input":"x","dimensions":0}'),
        ("dimensions", b'{"model":"m","input":"x","dimensions":true}'),
        ("encoding_format", b'{"model":"m","input":"x","encoding_format":"hex"}'),
    ],
)
async def test_invalid_request_gets_an_openai_error(post: Any, param: str, body: bytes) -> None:
    status, answer = await post(body)
    assert status == 400
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"
