"""Sends requests to a running proxy."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import ClientError, ClientSession, ClientTimeout, InvalidURL, NonHttpUrlClientError, TCPConnector

from proxy.errors import ConfigError
from proxy.filling.embedding_call import EmbeddingCall
from proxy.filling.replies import Later, Reply

_CONNECT_S = 10.0
_PROBE = (("Cache-Control", "only-if-cached"), ("Prefer", "return=minimal"))


class Sender:
    """``timeout_s`` bounds one request, the proxy's own waiting included."""

    def __init__(self, session: ClientSession, call: EmbeddingCall, *, timeout_s: float) -> None:
        self._session = session
        self._call = call
        self._timeout = ClientTimeout(total=timeout_s, connect=_CONNECT_S)

    async def embed(self, texts: Sequence[str]) -> Reply | Later:
        """Have ``texts`` embedded and cached; `Later` if there was no response."""
        return await self._post(texts, ())

    async def ask(self, texts: Sequence[str]) -> Reply | Later:
        """Ask which of ``texts`` are cached; nothing goes upstream."""
        return await self._post(texts, _PROBE)

    async def _post(self, texts: Sequence[str], extra: Sequence[tuple[str, str]]) -> Reply | Later:
        fields = [*self._call.fields(), *extra]
        try:
            async with self._session.post(
                self._call.url,
                data=self._call.body(texts),
                headers=fields,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                return Reply(status=response.status, headers=response.headers, body=await response.read())
        except (InvalidURL, NonHttpUrlClientError) as error:
            raise ConfigError(f"--base-url: not a URL; accepted: as http://127.0.0.1:8080/v1 ({error})") from error
        except TimeoutError:
            return Later(reason=f"no response from {self._call.url} in time", retry_after_s=None, is_limit=False)
        except ClientError as error:
            reason = f"can't reach the proxy at {self._call.url}: {error}"
            return Later(reason=reason, retry_after_s=None, is_limit=False)


@asynccontextmanager
async def connected(
    call: EmbeddingCall, *, connections: int, timeout_s: float, is_kept: bool = True
) -> AsyncIterator[Sender]:
    """Unless ``is_kept``, each request has a new connection, so that any worker of a proxy may get it."""
    async with ClientSession(connector=TCPConnector(limit=connections, force_close=not is_kept)) as session:
        yield Sender(session, call, timeout_s=timeout_s)
