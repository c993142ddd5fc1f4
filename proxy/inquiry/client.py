"""Asks an upstream over HTTP."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import BaseConnector, ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from multidict import CIMultiDict

from proxy.config.settings import UpstreamSetting
from proxy.inquiry.interview import Ask
from proxy.inquiry.reply import Reply
from proxy.upstream.failures import FailureMapper
from proxy.upstream.outbound import Outbound

_TIMEOUT_S = 60.0
_MAX_BYTES = 256 * 1024**2
_CHUNK_BYTES = 1024**2


@asynccontextmanager
async def asking(
    setting: UpstreamSetting, url: str, key: str | None, *, connector: BaseConnector | None = None
) -> AsyncIterator[Ask]:
    """Yields a function that sends a body to ``url``. Raises `ConfigError` for certificates that can't be used."""
    outbound, failures = Outbound(setting.name, setting.egress), FailureMapper(setting.egress.proxy)
    headers = CIMultiDict({"Content-Type": "application/json", "Accept": "application/json"})
    if key is not None:
        name, _, scheme = setting.provider.auth.partition(": ")
        headers[name] = f"{scheme} {key}" if scheme else key
    async with ClientSession(
        connector=connector or TCPConnector(), cookie_jar=DummyCookieJar(), timeout=ClientTimeout(_TIMEOUT_S)
    ) as session:

        async def ask(body: dict[str, Any]) -> Reply:
            began_s = time.perf_counter()
            try:
                async with session.post(
                    url, data=orjson.dumps(body), headers=outbound.fields(url, headers), allow_redirects=False,
                    **outbound.options(url),
                ) as response:  # fmt: skip
                    content = bytearray()
                    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                        content += chunk
                        if len(content) > _MAX_BYTES:
                            return _failed("the response is larger than 256 MiB")
                    seconds = time.perf_counter() - began_s
                    return Reply(response.status, tuple(response.headers.items()), bytes(content), seconds)
            except TimeoutError:
                return _failed(f"no response within {_TIMEOUT_S:g} s")
            except (ClientError, OSError, ValueError) as error:
                return _failed(failures.describe(error))

        yield ask


def _failed(why: str) -> Reply:
    return Reply(0, (), b"", 0.0, failure=" ".join(why.split()))
