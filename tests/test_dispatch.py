"""Where a request of the data port goes, what becomes of its failure, and what is said of it."""

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import HttpVersion, HttpVersion10, HttpVersion11, web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from proxy import dispatch
from proxy.access.access import Access
from proxy.access.validations import Validations
from proxy.embeddings.request_log import RequestLog
from proxy.errors import CLIENT_LEFT, NotCached, ProxyError
from proxy.labels import RequestOutcome
from proxy.protocol.cors import Cors
from proxy.telemetry.access_log import AccessLogLine, RequestIds
from proxy.telemetry.tracing import Traces
from proxy.upstream.router import Router
from tests.support import proxy_log
from tests.support.fake_client import FakeClient, origin_of

EMBEDDINGS = "/v1/embeddings"
PAGE = "https://page"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Embeddings:
    """In place of the embeddings route."""

    def __init__(self) -> None:
        self.handled: list[str] = []
        self.counted: list[int] = []
        self.client: str | None = None  # that was counted last
        self.wrong_paths: list[tuple[str, str | None]] = []
        self.respond: Callable[[], web.StreamResponse] = lambda: web.Response(text="embedded")
        self.hitless_report = self

    async def handle(self, request: web.BaseRequest, progress: Any) -> web.StreamResponse:
        self.handled.append(request.raw_path)
        progress.outcome, progress.items = RequestOutcome.MISS, 2
        return self.respond()

    def count(self, progress: Any, status: int, _started_s: float) -> None:
        self.counted.append(status)
        self.client = progress.client

    def wrong_path(self, progress: Any, client: str | None, _tenant: bytes, path: str, user_agent: str | None) -> None:
        progress.client_label = client
        self.wrong_paths.append((path, user_agent))


class Data:
    """A dispatcher with everything around it in the hands of a test."""

    def __init__(self, *, key: str | None = None, cors: Cors | None = None, client_keys: Any = None) -> None:
        self.embeddings = Embeddings()
        self.origin = origin_of(FakeClient(), key=key)
        self.origin.cors = cors or Cors()
        self.router = Router(self.origin)
        self.lines: list[AccessLogLine] = []
        self.is_draining = False
        access = Access(
            shares_all=False, owns_key=key is not None, client_keys=client_keys,
            validations=Validations(ttl_s=60, clock=lambda: 0.0),
        )  # fmt: skip
        anything: Any = SimpleNamespace(add=self.lines.append)
        nothing: Any = SimpleNamespace(add=lambda *_: None)
        as_any: Any = self
        self.dispatcher = dispatch.Dispatcher(
            self.router, as_any.embeddings, access, log=RequestLog(anything, nothing), ids=RequestIds("own"),
            traces=Traces(), is_draining=lambda: self.is_draining,
        )  # fmt: skip

    async def send(
        self,
        method: str = "POST",
        target: str = EMBEDDINGS,
        fields: dict[str, str] | None = None,
        *,
        has_body: bool = True,
        sent_bytes: int = 0,
        version: HttpVersion = HttpVersion11,
    ) -> Any:
        """``sent_bytes`` of the response have left when it fails."""
        body: Any = {"payload": SimpleNamespace()} if has_body else {}
        given = {"Host": "127.0.0.1", **(fields or {})}
        request = make_mocked_request(method, target, given, version=version, **body)
        request._payload_writer.output_size = sent_bytes
        return await self.dispatcher.handle(request)

    @property
    def line(self) -> AccessLogLine:
        (line,) = self.lines
        return line


@pytest.fixture
def data() -> Data:
    return Data()


@pytest.fixture
def relayed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was relayed in place of being sent."""
    calls: list[dict[str, Any]] = []

    async def relay(_request: Any, client: Any, url: str, forwarded: CIMultiDict[str], **more: Any) -> web.Response:
        calls.append({"client": client, "url": url, "headers": dict(forwarded), **more})
        return web.Response(status=418)

    monkeypatch.setattr(dispatch, "relay", relay)
    return calls


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.message for entry in proxy_log.records(caplog) if entry.levelno == logging.WARNING]


# --- routes


@pytest.mark.parametrize("target", [EMBEDDINGS, "/embeddings", "/api/v1/embeddings?x=1"])
async def test_embeddings_calls_go_to_their_route(data: Data, target: str) -> None:
    response = await data.send(target=target)
    assert (response.text, data.embeddings.handled) == ("embedded", [target])
    assert (data.line.outcome, data.line.status, data.line.items) == (RequestOutcome.MISS, 200, 2)
    assert not data.embeddings.counted  # by the route itself


@pytest.mark.parametrize(("method", "target"), [("GET", EMBEDDINGS), ("POST", "/v1/chat/completions")])
async def test_all_else_passes_through(
    data: Data, relayed: list[dict[str, Any]], method: str, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = await data.send(method, target, {"Authorization": "Bearer k"})
    (call,) = relayed
    assert (response.status, call["url"], call["owns_key"]) == (418, f"http://one{target}", False)
    assert call["client"] is data.origin.client
    assert call["headers"]["Authorization"] == "Bearer k"
    assert call["request_id"] == data.line.request_id
    assert (data.line.outcome, data.line.status) == (RequestOutcome.PASS, 418)
    assert not data.embeddings.handled
    assert not data.embeddings.wrong_paths
    assert not warnings(caplog)


async def test_the_proxys_own_key_goes_upstream_in_place_of_the_clients(relayed: list[dict[str, Any]]) -> None:
    await Data(key="sk-own").send("GET", "/v1/models", {"Authorization": "Bearer k"})
    (call,) = relayed
    assert (call["headers"]["Authorization"], call["owns_key"]) == ("Bearer sk-own", True)


async def test_a_target_without_a_path_has_no_url(data: Data, relayed: list[dict[str, Any]]) -> None:
    assert (await data.send("GET", "http://other/v1/models")).status == 400
    assert not relayed


async def test_a_path_that_looks_like_embeddings_is_relayed_and_said_once(
    data: Data, relayed: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await data.send(target="/other/embeddings", fields={"User-Agent": "program/1"})
    assert len(relayed) == 2
    assert data.embeddings.wrong_paths == [("/…/embeddings", "program/1")] * 2
    (warning,) = warnings(caplog)
    assert warning == (
        "POST /…/embeddings looks like an embeddings call and is relayed uncached; POST /v1/embeddings is cached."
        " Set the client's base URL to this proxy's /v1, or --upstream (base_url) to the part of the upstream's URL"
        " before /embeddings (logged once)"
    )


async def test_only_so_many_paths_are_said(
    data: Data, relayed: list[dict[str, Any]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_MAX_WARNED_PATHS", 2)
    for target in ("/other/embeddings", "/v2/embeddings", "/v3/embeddings"):
        await data.send(target=target)
    assert [warning.split()[1] for warning in warnings(caplog)] == ["/…/embeddings", "/v2/embeddings"]
    assert len(relayed) == 3


async def test_with_several_upstreams_such_a_path_is_no_ones(data: Data, relayed: list[dict[str, Any]]) -> None:
    data.router._routed = [(["x"], data.origin)]
    await data.send(target="/other/embeddings")
    assert (data.embeddings.handled, relayed) == (["/other/embeddings"], [])


async def test_without_a_body_it_is_no_embeddings_call(
    data: Data, relayed: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    await data.send(target="/other/embeddings", has_body=False)
    assert relayed
    assert not warnings(caplog)


# --- preflights


async def test_a_preflight_is_relayed_without_a_key_and_what_it_says_is_learned(relayed: list[dict[str, Any]]) -> None:
    data = Data(key="sk-own")
    data.dispatcher._access._cors_origins = frozenset({PAGE})
    for target in (EMBEDDINGS, "/v1/models"):
        response = await data.send("OPTIONS", target, PREFLIGHT | {"Authorization": "Bearer k"}, has_body=False)
        assert response.status == 418
    for call in relayed:
        assert "Authorization" not in call["headers"]
        assert call["owns_key"] is False
        call["on_head"](204, CIMultiDict({"Access-Control-Allow-Origin": PAGE}))
        assert data.origin.cors.knows(PAGE)
        assert not data.origin.cors.knows("https://other")
    assert relayed[0]["on_head"].func == data.origin.cors.learn_preflight
    assert relayed[1]["on_head"].func == data.origin.cors.passed_through
    assert {line.outcome for line in data.lines} == {RequestOutcome.PREFLIGHT}


async def test_the_operators_origins_get_a_response_and_no_others(relayed: list[dict[str, Any]]) -> None:
    data = Data(cors=Cors(frozenset({PAGE})))
    allowed = await data.send("OPTIONS", EMBEDDINGS, PREFLIGHT, has_body=False)
    assert (allowed.status, allowed.headers["Access-Control-Allow-Origin"]) == (204, PAGE)
    refused = await data.send("OPTIONS", EMBEDDINGS, PREFLIGHT | {"Origin": "https://other"}, has_body=False)
    assert refused.status == 403
    assert not relayed


# --- what is not admitted


@pytest.mark.parametrize(
    ("method", "version", "fields", "says"),
    [
        ("CONNECT", HttpVersion11, {}, "tunnels"),
        ("TRACE", HttpVersion11, {}, "TRACE"),
        ("POST", HttpVersion(2, 0), {}, "version"),
        ("POST", HttpVersion11, {"Transfer-Encoding": "gzip, chunked"}, "chunked"),
    ],
)
async def test_what_others_may_understand_differently_is_refused(
    data: Data, relayed: list[dict[str, Any]], method: str, version: HttpVersion, fields: dict[str, str], says: str
) -> None:
    response = await data.send(method, fields=fields, version=version)
    assert response.status == 400
    assert says in response.text
    assert data.embeddings.counted == ([400] if method == "POST" else [])
    await data.send(method, "/v1/models", fields, version=version)
    assert len(data.embeddings.counted) == (method == "POST")
    assert not relayed
    assert not data.embeddings.handled


@pytest.mark.parametrize("fields", [{}, {"Transfer-Encoding": "Chunked"}])
async def test_usual_requests_are_admitted(data: Data, fields: dict[str, str]) -> None:
    assert (await data.send(fields=fields, version=HttpVersion10)).status == 200


async def test_an_unknown_client_is_refused_and_a_known_one_is_named(relayed: list[dict[str, Any]]) -> None:
    keys = SimpleNamespace(keys_version=1, name_of={"k": "team"}.get)
    data = Data(client_keys=keys)
    assert (await data.send("GET", "/v1/models", {"Authorization": "Bearer x"})).status == 401
    assert (await data.send(fields={"Authorization": "Bearer x"})).status == 401
    assert data.embeddings.counted == [401]
    await data.send("GET", "/v1/models", {"Authorization": "Bearer k"})
    assert [line.client for line in data.lines] == [None, None, "team"]
    await data.send("OPTIONS", EMBEDDINGS, PREFLIGHT, has_body=False)  # it has no key
    assert len(relayed) == 2
    await data.send(fields={"Authorization": "Bearer k", "Transfer-Encoding": "gzip"})
    assert (data.embeddings.counted, data.embeddings.client) == ([401, 400], "team")


# --- failures


def fails(data: Data, error: BaseException) -> None:
    def respond() -> web.StreamResponse:
        raise error

    data.embeddings.respond = respond


async def test_an_error_of_the_proxys_own_is_its_response(data: Data) -> None:
    fails(data, NotCached("2 of 2 items are not cached."))
    response = await data.send()
    assert (response.status, data.line.status) == (504, 504)
    assert "2 of 2 items are not cached." in response.text
    assert response.headers["X-Request-Id"] == data.line.request_id


async def test_an_unexpected_error_is_logged_and_says_nothing(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    fails(data, ValueError("secret"))
    response = await data.send()
    assert (response.status, data.line.status) == (ProxyError.status, ProxyError.status)
    assert "Internal error; see the proxy log." in response.text
    assert "secret" not in response.text
    (entry,) = proxy_log.records(caplog)
    assert (entry.message, entry.exc_info is not None) == ("unexpected error in a request", True)


async def test_a_response_that_has_begun_is_cut_short(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    fails(data, NotCached("no"))
    with pytest.raises(ConnectionResetError):
        await data.send(sent_bytes=1)
    assert data.line.status == 504
    assert warnings(caplog) == ["response cut short: NotCached"]


async def test_a_client_that_leaves_is_logged(data: Data) -> None:
    fails(data, asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await data.send()
    assert data.line.status == CLIENT_LEFT


# --- what each response has


async def test_the_clients_request_id_comes_back_and_the_trace_is_logged(data: Data) -> None:
    response = await data.send(fields={"X-Request-Id": "mine", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    assert response.headers["X-Request-Id"] == data.line.request_id == "mine"
    assert data.line.trace_id == TRACE


async def test_a_response_has_the_cors_fields_of_its_upstream(data: Data) -> None:
    data.origin.cors = Cors(frozenset({PAGE}))
    response = await data.send(fields={"Origin": PAGE})
    assert response.headers["Access-Control-Allow-Origin"] == PAGE


async def test_a_proxy_that_drains_closes_connections(data: Data) -> None:
    assert (await data.send()).keep_alive is None
    data.is_draining = True
    assert (await data.send()).keep_alive is False


async def test_a_response_that_is_sent_stays_as_it_is(data: Data) -> None:
    sent = web.Response()
    sent._payload_writer = SimpleNamespace()  # type: ignore[assignment]
    assert sent.prepared
    data.embeddings.respond = lambda: sent
    data.is_draining = True
    response = await data.send()
    assert "X-Request-Id" not in response.headers
    assert response.keep_alive is None
