"""What probes of the admin port are told."""

from collections.abc import Iterable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import Metric

from proxy.admin.page import StatusPage
from proxy.admin.port import _make_app


async def no_families() -> Iterable[Metric]:
    return ()


@pytest.mark.parametrize(
    ("is_draining", "is_ready", "expected"),
    [
        (False, True, (200, "ok\n")),
        (True, False, (503, "draining\n")),
        (False, False, (503, "no worker is running\n")),
    ],
)
async def test_readiness_says_why_there_is_none(is_draining: bool, is_ready: bool, expected: tuple[int, str]) -> None:
    about: Any = {}
    app = _make_app(
        no_families,
        StatusPage(no_families, about, is_draining=lambda: is_draining, now=lambda: 0.0),
        is_draining=lambda: is_draining,
        is_ready=lambda: is_ready,
        describe=dict,
        is_loopback=True,
    )
    async with TestClient(TestServer(app)) as client:
        response = await client.get("/readyz")
        assert (response.status, await response.text()) == expected
        assert (await client.get("/healthz")).status == 200
