"""Upstreams that are reached through a forward proxy, or under a private authority."""

from dataclasses import replace
from typing import Any

import pytest

from proxy.config.settings import UpstreamSetting
from proxy.upstream import egress
from proxy.upstream.egress import Egress
from tests.conftest import StartProxy
from tests.support.client import Client
from tests.support.forward_proxy import ForwardProxy
from tests.support.scripted import ScriptedUpstream

LOGIN = "Basic dTpwQHNzOi8="  # u and p@ss:/
URL_LOGIN = "u:p%40ss%3A%2F"


class Net:
    """One upstream and one forward proxy, each with TLS or without."""

    def __init__(self, upstream: ScriptedUpstream, through: ForwardProxy, start: StartProxy, way: Egress) -> None:
        self.upstream = upstream
        self.through = through
        self.way = way
        self._start = start

    async def proxy(self, *, login: str = "", **changes: Any) -> Client:
        way = replace(self.way, **changes)
        if login and way.proxy is not None:
            way = replace(way, proxy=egress.parse_proxy(way.proxy.url.replace("://", f"://{login}@")))
        return await self._start(upstream=UpstreamSetting(name="scripted", base_url=self.upstream.base_url, egress=way))

    def answer(self, answer: Any) -> tuple[int, str]:
        return answer.status, answer.json["error"]["code"]


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the proxy logged; on a busy machine asyncio's debug mode has something to say as well."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("proxy.")]
