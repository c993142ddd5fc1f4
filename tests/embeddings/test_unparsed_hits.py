"""What is counted and logged of a hit that is not parsed, and which requests are parsed after all."""

from types import SimpleNamespace
from typing import Any

import pytest

from proxy.embeddings.fast_path import LONG_BYTES
from proxy.embeddings.recognized import RecognizedRequest
from proxy.embeddings.request_log import RequestLog
from proxy.embeddings.unparsed import UnparsedRequests
from proxy.labels import RequestOutcome
from proxy.telemetry.access_log import AccessLogLine, RequestIds
from proxy.telemetry.tracing import Traces
from tests.support import proxy_log

_NOTHING: Any = None
RECOGNIZED = RecognizedRequest(*[_NOTHING] * len(RecognizedRequest._fields))
TRACE = "0af7651916cd43dd8448eb211c80319c"


class FastPath:
    """``found`` is what it has, for later if it is a recognized request; an exception is raised."""

    def __init__(self) -> None:
        self.found: Any = None
        self.after_look_up: Any = None

    def find_by_bytes(self, _sent: bytes, _connection: Any, _started_s: float) -> Any:
        return self._or_raise(self.found)

    def is_for_later(self, sent: bytes, _connection: Any) -> bool:
        return len(sent) > LONG_BYTES

    async def recognize(self, _sent: bytes, _connection: Any, _started_s: float) -> Any:
        return self._or_raise(self.found)

    async def look_up(self, _recognized: Any, _connection: Any) -> Any:
        return self._or_raise(self.after_look_up)

    def response(self, _hit: Any, request_id: str) -> list[bytes]:
        return [b"hit ", request_id.encode()]

    def begins(self, sent: bytes) -> bool:
        return sent == b"known"

    def _or_raise(self, found: Any) -> Any:
        if isinstance(found, Exception):
            raise found
        return found


class Bytes:
    """Requests that are not parsed, with everything around them in the hands of a test."""

    def __init__(self) -> None:
        self.fast_path = FastPath()
        self.timed = 0
        self.lines: list[AccessLogLine] = []
        self.is_draining = False
        as_any: Any = self
        log: Any = SimpleNamespace(add=self.lines.append)
        recent: Any = SimpleNamespace(add=lambda *_: None)
        self.requests = UnparsedRequests(
            as_any, as_any.fast_path, log=RequestLog(log, recent), ids=RequestIds("own"), traces=Traces(),
            is_draining=lambda: self.is_draining,
        )  # fmt: skip

    def observe(self, _progress: Any, _started_s: float) -> None:
        """In place of the embeddings route."""
        self.timed += 1

    def handle(self, sent: bytes = b"sent") -> tuple[Any, Any]:
        """The response, and the connection."""
        connection: Any = SimpleNamespace(tenant=None)
        return self.requests.handle_bytes(sent, connection), connection

    @property
    def line(self) -> AccessLogLine:
        (line,) = self.lines
        return line


@pytest.fixture
def data() -> Bytes:
    return Bytes()


def hit(**fields: str) -> Any:
    known = SimpleNamespace(
        tenant=b"tenant",
        origin=None,
        spec=SimpleNamespace(model="m", keys=[b"a", b"b"]),
        row=SimpleNamespace(client="c"),
    )
    return SimpleNamespace(known=known, fields=fields, looked_up_s=0.0)


def test_a_hit_is_counted_and_logged(data: Bytes) -> None:
    data.fast_path.found = hit(**{"x-request-id": "mine", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    response, connection = data.handle()
    assert (response, connection.tenant) == ([b"hit ", b"mine"], b"tenant")
    line = data.line
    assert (line.request_id, line.trace_id, line.outcome, line.status) == ("mine", TRACE, RequestOutcome.HIT, 200)
    assert (line.items, line.cached, line.client, data.timed) == (2, 2, "c", 1)


async def test_a_hit_after_a_read_is_the_same(data: Bytes) -> None:
    data.fast_path.found = RECOGNIZED
    data.fast_path.after_look_up = hit()
    response, connection = data.handle()
    assert not data.lines
    assert (await response)[0] == b"hit "
    assert (data.line.outcome, connection.tenant) == (RequestOutcome.HIT, b"tenant")
    data.fast_path.after_look_up = None
    assert await data.handle()[0] is None
    assert len(data.lines) == 1


async def test_what_is_not_found_or_fails_is_parsed(data: Bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert data.handle()[0] is None
    data.fast_path.found = ValueError("odd")
    assert data.handle()[0] is None
    data.fast_path.found, data.fast_path.after_look_up = RECOGNIZED, ValueError("odd")
    assert await data.handle()[0] is None
    assert proxy_log.messages(caplog) == ["unexpected error in the fast path"] * 2
    assert not data.lines


async def test_a_long_request_is_recognized_later(data: Bytes, caplog: pytest.LogCaptureFixture) -> None:
    sent = bytes(LONG_BYTES + 1)
    data.fast_path.found, data.fast_path.after_look_up = RECOGNIZED, hit()
    response, _ = data.handle(sent)
    assert not data.lines
    assert (await response)[0] == b"hit "
    assert data.line.outcome is RequestOutcome.HIT
    data.fast_path.found = None
    assert await data.handle(sent)[0] is None
    data.fast_path.found = ValueError("odd")
    assert await data.handle(sent)[0] is None
    assert proxy_log.messages(caplog) == ["unexpected error in the fast path"]
    assert len(data.lines) == 1


def test_while_the_proxy_drains_every_request_is_parsed(data: Bytes) -> None:
    data.fast_path.found, data.is_draining = hit(), True
    assert data.handle()[0] is None


def test_which_heads_are_known(data: Bytes) -> None:
    assert data.requests.knows_head(b"known")
    assert not data.requests.knows_head(b"unknown")
