"""Request bodies: read within limits of size, complexity and memory, and decompressed."""

from collections.abc import Iterator
from typing import NamedTuple

from aiohttp import HttpVersion11
from aiohttp.web import BaseRequest, RequestPayloadError

from proxy import turns
from proxy.capacity import SharedCapacity
from proxy.errors import BodyTooComplex, BodyTooLarge, InvalidRequest
from proxy.http.body_rate import paced
from proxy.labels import BypassReason
from proxy.pieces import Pieces
from proxy.protocol import content_coding
from proxy.protocol.bypass import Bypass
from proxy.protocol.content_coding import InvalidCoding
from proxy.protocol.headers import Headers
from proxy.protocol.json_structure import MAX_MEMBERS, MAX_VALUES, STEP_BYTES, Structure
from proxy.reservation import MemoryReservation
from proxy.steps import Steps
from proxy.telemetry.metrics import Metrics
from proxy.tenant import Tenant
from proxy.worker_thread import Worker

_SMALL_BYTES = 64 * 1024


class Body(NamedTuple):
    content: bytes
    structure: Structure  # empty for a compressed body


class BodyReader:
    """``max_bytes`` limits one body, ``max_held_bytes`` the memory of all requests and their responses together."""

    def __init__(self, metrics: Metrics, *, max_bytes: int, max_held_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._capacity = SharedCapacity(
            max_held_bytes, "bytes of memory for requests and responses", unverified_limit=max_held_bytes // 2
        )
        self.worker = Worker("bodies")  # for work that would block the event loop
        metrics.held_bytes.set_function(lambda: self._capacity.used)
        metrics.held_limit_bytes.set(max_held_bytes)

    def close(self) -> None:
        self.worker.close()

    def reserve(self, tenant: Tenant) -> MemoryReservation:
        return MemoryReservation(self._capacity, tenant)

    async def read(self, request: BaseRequest, reservation: MemoryReservation) -> Body:
        """The body as it was sent. Raises `ProxyError`."""
        if (request.content_length or 0) > self._max_bytes:
            raise self._too_large()
        await send_continue(request)
        body, structure = Pieces(), Structure()
        is_json = "Content-Encoding" not in request.headers

        async def take(chunk: bytes) -> None:
            body.write(chunk)
            reservation.take(len(chunk))
            if reservation.bytes > self._max_bytes:
                raise self._too_large()
            if reservation.bytes > _SMALL_BYTES:
                await turns.turn()
            if is_json:
                await turns.run(_count(structure, chunk))

        try:
            if request.content.is_eof():  # it arrived together with its head
                await take(request.content.read_nowait())
            else:
                async for chunk in paced(request.content):
                    await take(chunk)
            if is_json and request.content_type == "application/json":
                reservation.require(structure.objects_bytes)
            return Body(await turns.run(body.joined()), structure)
        except RequestPayloadError:
            raise InvalidRequest("The request body is not framed as its headers say.") from None
        finally:
            _free(body)

    def received(self, body: bytes, objects_bytes: int, reservation: MemoryReservation) -> None:
        """Check a short body, received without being parsed, against the limit of `read`, and reserve the memory for it
        and for ``objects_bytes`` that were made of it. Raises `ProxyError`."""
        if len(body) > self._max_bytes:
            raise self._too_large()
        reservation.take(len(body) + objects_bytes)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request body is larger than {self._max_bytes} bytes.")

    async def inflated(self, given: Headers, body: bytes, reservation: MemoryReservation) -> Body:
        """Decompress a compressed body, under the limits of a body that was not compressed.

        Raises `Bypass` if it can't be decompressed, `ProxyError` if it exceeds a limit. Then nothing is reserved.
        """
        codings = given.getall("Content-Encoding")
        if len(codings) != 1 or codings[0].lower() not in content_coding.CODINGS:
            raise Bypass(BypassReason.CONTENT_ENCODING)
        max_bytes = content_coding.most_bytes(body, self._max_bytes)
        before_bytes = reservation.bytes
        pieces, plain, structure = content_coding.decode_in_pieces(body), Pieces(), Structure()
        try:
            while piece := _next(pieces):
                reservation.take(len(piece))
                await turns.turn()
                await turns.run(_count(structure, piece))
                _require_small(structure, max_bytes)
                plain.write(piece)
            reservation.require(structure.objects_bytes)
            return Body(await turns.run(plain.joined()), structure)
        except BaseException:
            reservation.give_back(reservation.bytes - before_bytes)
            raise
        finally:
            _free(plain)


def _free(body: Pieces) -> None:
    """Free the chunks of a refused body in turns."""
    if body.full:
        turns.free(body.full)


def _require_small(structure: Structure, max_bytes: int) -> None:
    if structure.size_bytes > max_bytes:
        raise BodyTooLarge(f"The request body is larger than {max_bytes} bytes when decompressed.")


def _require_simple(structure: Structure) -> None:
    if structure.is_too_complex:
        raise BodyTooComplex(
            f"The request body has more than {MAX_VALUES:,} JSON values or more than {MAX_MEMBERS:,} members of"
            " objects. Send less in one request."
        )


def _count(structure: Structure, piece: bytes) -> Steps[None]:
    """Count a piece of JSON. Raises `BodyTooComplex`."""
    for start in range(0, len(piece), STEP_BYTES):
        if start:
            yield
        structure.feed(piece[start : start + STEP_BYTES])
        _require_simple(structure)


def _next(pieces: Iterator[bytes]) -> bytes:
    """The next piece of a decompressed body. Raises `Bypass`."""
    try:
        return next(pieces, b"")
    except InvalidCoding:
        raise Bypass(BypassReason.CONTENT_ENCODING) from None


async def send_continue(request: BaseRequest) -> None:
    """Send 100 (Continue) to a client that waits for it before it sends the body (RFC 9110 §10.1.1; not HTTP/1.0)."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # aiohttp would count it as part of the response
