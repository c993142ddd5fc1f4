"""A real Infinity with a short queue, which answers 429 while the queue is full, under 64 clients: ``make
test-infinity``."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from openai import AsyncOpenAI, RateLimitError

from proxy.config.settings import UpstreamSetting
from proxy.protocol.providers import PROVIDERS
from tests.conftest import StartProxy
from tests.infinity.server import DIMENSIONS, KEY, MODEL, InfinityServer, is_installed

pytestmark = [
    pytest.mark.infinity,
    pytest.mark.skipif(not is_installed(), reason="there is no Infinity; make test-infinity installs it"),
    pytest.mark.timeout(600),
]

CLIENTS, REQUESTS, ITEMS = 64, 2, 2  # requests of each client, items of each request
WAIT_S = 300.0  # the test is about what fails; how long it takes depends on the machine
BATCH, QUEUE = 4, 8  # items


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfinityServer]:
    server = InfinityServer(
        tmp_path_factory.mktemp("infinity"),
        arguments=("--batch-size", str(BATCH)),
        environment={"INFINITY_QUEUE_SIZE": str(QUEUE)},
    )
    yield server
    server.popen.terminate()
    server.wait()


async def crowd(base_url: str) -> Counter[str]:
    """How many requests of 64 clients were answered, and refused. The clients do not retry."""
    outcomes: Counter[str] = Counter()

    async def ask(client: AsyncOpenAI, number: int) -> None:
        for round_ in range(REQUESTS):
            texts = [f"client {number}, request {round_}, text {n}: " + "some words " * 4 for n in range(ITEMS)]
            try:
                response = await client.embeddings.create(model=MODEL, input=texts)
            except RateLimitError:
                outcomes["refused"] += 1
            else:
                assert [len(datum.embedding) for datum in response.data] == [DIMENSIONS] * ITEMS
                outcomes["answered"] += 1

    async with AsyncOpenAI(api_key=KEY, base_url=base_url, max_retries=0, timeout=2 * WAIT_S) as client:
        await asyncio.gather(*(ask(client, number) for number in range(CLIENTS)))
    return outcomes


async def test_64_clients_are_all_answered_of_whom_it_refuses_many_itself(
    start_proxy: StartProxy, busy: InfinityServer
) -> None:
    direct = await crowd(busy.base_url)
    assert direct["refused"] > 0
    upstream = UpstreamSetting(name="infinity", base_url=busy.base_url, provider=PROVIDERS["infinity"])
    client = await start_proxy(upstream=upstream, rate_limit_wait_s=WAIT_S, upstream_timeout_s=WAIT_S)
    through = await crowd(client.proxy.base_url)
    assert through == {"answered": CLIENTS * REQUESTS}
