"""Request bodies: read as they come, held in memory within bounds, and inflated where they came compressed."""

import asyncio
import zlib
from concurrent.futures import ThreadPoolExecutor

from aiohttp.web import BaseRequest, RequestPayloadError

from proxy.connections import paced
from proxy.errors import BodyTooLarge, InvalidRequest, Overloaded
from proxy.metrics import Metrics
from proxy.passthrough import answer_expect
from proxy.wire import Bypass

_MAX_RATIO, _LEAST_BOUND = 100, 1024 * 1024


class Bodies:
    """``max_bytes`` is for one of them, ``max_held_bytes`` for all that are in memory at a time."""

    def __init__(self, metrics: Metrics, *, max_bytes: int, max_held_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_held_bytes = max_held_bytes
        self._held_bytes = 0
        # One at a time and in a thread of its own: it takes a core for as long as it lasts.
        self._inflating = asyncio.Semaphore(1)
        self._inflater = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inflate")
        metrics.held_bytes.set_function(lambda: self._held_bytes)
        metrics.held_limit_bytes.set(max_held_bytes)

    def close(self) -> None:
        self._inflater.shutdown(wait=False)

    def hold(self, size: int) -> None:
        """Raises `Overloaded` if there is no room."""
        if self._held_bytes + size > self._max_held_bytes:
            raise Overloaded("Too many request bodies are held in memory.")
        self._held_bytes += size

    def release(self, size: int) -> None:
        self._held_bytes -= size

    async def read(self, request: BaseRequest, held: "Held") -> bytes:
        """The body as it was sent. Raises `ProxyError`."""
        if (request.content_length or 0) > self._max_bytes:
            raise self._too_large()
        await answer_expect(request)
        chunks: list[bytes] = []

        def take(chunk: bytes) -> None:
            chunks.append(chunk)
            held.take(len(chunk))
            if held.bytes > self._max_bytes:
                raise self._too_large()

        try:
            if request.content.is_eof():  # it came along with its head
                take(request.content.read_nowait())
            else:
                async for chunk in paced(request.content):
                    take(chunk)
        except RequestPayloadError:
            raise InvalidRequest("The request body is not framed as its headers say.") from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self._max_bytes} bytes.")

    async def inflated(self, request: BaseRequest, body: bytes, held: "Held") -> bytes:
        """A compressed body as it was, which is no larger than one that is not compressed may be.

        Raises `Bypass` where it can't be read, `ProxyError` where it must not be.
        """
        codings = request.headers.getall("Content-Encoding")
        if len(codings) != 1 or codings[0].lower() not in {"gzip", "deflate"}:
            raise Bypass("content-encoding")
        # No JSON of texts is a hundred times smaller for it; what claims to be is a bomb.
        bound = min(self._max_bytes, max(_LEAST_BOUND, _MAX_RATIO * len(body)))
        held.take(bound)
        plain = b""
        try:
            async with self._inflating:
                plain = await asyncio.get_running_loop().run_in_executor(self._inflater, _inflate, body, bound)
        finally:
            held.give_back(bound - len(plain))
        return plain


class Held:
    """What one request has of all that is held."""

    __slots__ = ("_bodies", "bytes")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.bytes = 0

    def take(self, size: int) -> None:
        self._bodies.hold(size)
        self.bytes += size

    def give_back(self, size: int) -> None:
        self._bodies.release(size)
        self.bytes -= size

    def release(self) -> None:
        self.give_back(self.bytes)


def _inflate(body: bytes, max_bytes: int) -> bytes:
    try:
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as it says itself
        plain = inflater.decompress(body, max_bytes + 1)
    except zlib.error:
        raise Bypass("content-encoding") from None
    if len(plain) > max_bytes:
        raise BodyTooLarge(f"The request body is larger than {max_bytes} bytes when it is not compressed.")
    if not inflater.eof or inflater.unused_data:
        raise Bypass("content-encoding")
    return plain
