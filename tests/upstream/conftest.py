"""Upstreams behind a forward proxy, with TLS and without."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from proxy.upstream import egress
from proxy.upstream.egress import Egress
from tests.conftest import StartProxy
from tests.support.authorities import Authorities
from tests.support.egress import Net
from tests.support.forward_proxy import ForwardProxy
from tests.support.scripted import ScriptedUpstream


@pytest.fixture
def authorities(tmp_path: Path) -> Authorities:
    return Authorities(tmp_path)


@pytest.fixture(params=["http", "https"])
def upstream_scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxy_scheme() -> str:
    return "http"


@pytest.fixture
async def net(
    authorities: Authorities, start_proxy: StartProxy, upstream_scheme: str, proxy_scheme: str
) -> AsyncIterator[Net]:
    tls = authorities.server_tls()
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(
            ScriptedUpstream().serving(tls if upstream_scheme == "https" else None)
        )
        through = await stack.enter_async_context(ForwardProxy().serving(tls if proxy_scheme == "https" else None))
        way = Egress(proxy=egress.parse_proxy(f"{proxy_scheme}://127.0.0.1:{through.port}"), ca=authorities.ca)
        yield Net(upstream, through, start_proxy, way)
