"""Request bodies: read as they come, inflated where they came compressed, and held in memory within bounds."""

import asyncio
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from aiohttp import HttpVersion11
from aiohttp.web import BaseRequest, RequestPayloadError

from proxy.budget import Budget, Tenant
from proxy.errors import BodyTooComplex, BodyTooLarge, InvalidRequest
from proxy.http.pacing import paced
from proxy.protocol.bypass import Bypass
from proxy.protocol.json_structure import MAX_MEMBERS, MAX_VALUES, Structure
from proxy.telemetry.metrics import Metrics
from proxy.worker_thread import Worker

_MAX_RATIO, _LEAST_BOUND = 100, 1024 * 1024
_COMPRESSED_STEP, _PIECE = 16 * 1024, 256 * 1024


class Body(NamedTuple):
    content: bytes
    structure: Structure  # empty for what is no JSON yet


class BodyReader:
    """``max_bytes`` is for one of them, ``max_held_bytes`` for all that requests and their responses hold in memory."""

    def __init__(self, metrics: Metrics, *, max_bytes: int, max_held_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._budget = Budget(
            max_held_bytes, "bytes of memory for requests and responses", unverified_limit=max_held_bytes // 2
        )
        self.worker = Worker("bodies")  # for what would take too long on the event loop
        metrics.held_bytes.set_function(lambda: self._budget.used)
        metrics.held_limit_bytes.set(max_held_bytes)

    def close(self) -> None:
        self.worker.close()

    def hold(self, tenant: Tenant) -> "BodyReservation":
        return BodyReservation(self._budget, tenant)

    async def read(self, request: BaseRequest, held: "BodyReservation") -> Body:
        """The body as it was sent. Raises `ProxyError`."""
        if (request.content_length or 0) > self._max_bytes:
            raise self._too_large()
        await answer_expect(request)
        chunks: list[bytes] = []
        structure = Structure()
        is_json = "Content-Encoding" not in request.headers

        def take(chunk: bytes) -> None:
            chunks.append(chunk)
            held.take(len(chunk))
            if held.bytes > self._max_bytes:
                raise self._too_large()
            if is_json:
                structure.feed(chunk)
                _require_simple(structure)

        try:
            if request.content.is_eof():  # it came along with its head
                take(request.content.read_nowait())
            else:
                async for chunk in paced(request.content):
                    take(chunk)
        except RequestPayloadError:
            raise InvalidRequest("The request body is not framed as its headers say.") from None
        return Body(chunks[0] if len(chunks) == 1 else b"".join(chunks), structure)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self._max_bytes} bytes.")

    async def inflated(self, request: BaseRequest, body: bytes, held: "BodyReservation") -> Body:
        """A compressed body as it was, which is no larger and no more complex than one that is not compressed may be.

        Raises `Bypass` where it can't be read, `ProxyError` where it must not be; then it holds nothing of it.
        """
        codings = request.headers.getall("Content-Encoding")
        if len(codings) != 1 or codings[0].lower() not in {"gzip", "deflate"}:
            raise Bypass("content-encoding")
        # No JSON of texts is a hundred times smaller for it; what claims to be is a bomb.
        max_bytes = min(self._max_bytes, max(_LEAST_BOUND, _MAX_RATIO * len(body)))
        before_bytes = held.bytes
        pieces, structure = _inflate(body), Structure()
        plain: list[bytes] = []
        try:
            while piece := await self.worker.run(_next, pieces, held=held):
                held.take(len(piece))
                structure.feed(piece)
                _require_small(structure, max_bytes)
                _require_simple(structure)
                plain.append(piece)
        except BaseException:
            held.give_back(held.bytes - before_bytes)
            raise
        return Body(b"".join(plain), structure)


class BodyReservation:
    """What one request has of all that is held, until the last of those who use it has ended."""

    __slots__ = ("_budget", "_users", "bytes", "tenant")

    def __init__(self, budget: Budget, tenant: Tenant) -> None:
        self._budget = budget
        self._users = 1
        self.tenant = tenant
        self.bytes = 0

    def take(self, size: int, *, may_exceed: bool = False) -> None:
        """Raises `Overloaded` if there is no room. ``may_exceed``: unless it needs all of it, and nothing is held."""
        self._budget.take(self.tenant, id(self), size, may_exceed=may_exceed)
        self.bytes += size

    def give_back(self, size: int) -> None:
        self._budget.give_back(self.tenant, id(self), size)
        self.bytes -= size

    def lasts_until(self, work: "asyncio.Future[Any]") -> None:
        """``work`` uses what is held, and may outlive the request."""
        self._users += 1
        work.add_done_callback(lambda _: self.release())

    def release(self) -> None:
        """One of its users has ended."""
        self._users -= 1
        if not self._users:
            self.give_back(self.bytes)


def _require_small(structure: Structure, max_bytes: int) -> None:
    if structure.size_bytes > max_bytes:
        raise BodyTooLarge(f"The request body is larger than {max_bytes} bytes when it is not compressed.")


def _require_simple(structure: Structure) -> None:
    if structure.is_too_complex:
        raise BodyTooComplex(
            f"The request body has more than {MAX_VALUES:,} JSON values or more than {MAX_MEMBERS:,} members of"
            " objects. Send less in one request."
        )


def _next(pieces: Iterator[bytes]) -> bytes:
    return next(pieces, b"")


def _inflate(body: bytes) -> Iterator[bytes]:
    """The plain body in pieces. Raises `Bypass`."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as it says itself
    start = 0
    try:
        while not inflater.eof and start < len(body):
            waiting = body[start : start + _COMPRESSED_STEP]
            start += _COMPRESSED_STEP
            # Of what has been read, more may be to come than was asked for.
            while piece := inflater.decompress(waiting, _PIECE):
                yield piece
                waiting = inflater.unconsumed_tail
    except zlib.error:
        raise Bypass("content-encoding") from None
    if not inflater.eof or inflater.unused_data or start < len(body):
        raise Bypass("content-encoding")


async def answer_expect(request: BaseRequest) -> None:
    """Tell a client that asked first that its body is welcome (RFC 9110 §10.1.1; HTTP/1.0 knows no such answer)."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # aiohttp takes what was written for the start of an answer
