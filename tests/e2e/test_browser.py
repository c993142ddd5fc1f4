"""The status page, and pages on another origin, in a real Chromium: ``make test-browser``."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from proxy.access import client_keys
from proxy.app import running
from proxy.config.settings import UpstreamSetting
from tests.conftest import StartProxy
from tests.support.browser import DARK, LIGHT, Browser, browsing
from tests.support.client import Client
from tests.support.pages import Browsable, Policy, everyone, everyone_who_asks, nobody, reflects
from tests.support.scripted import Call, ScriptedUpstream
from tests.support.settings import settings_for

pytestmark = pytest.mark.browser

LIVE = "document.getElementById('state').textContent === 'Live'"
# The number in the tile of this name.
TILE = "[...document.querySelectorAll('#tiles div')].find((tile) => tile.children[0].textContent === arguments[0])"
HOSTILE = "<img src=x onerror=alert(1)>&amp;" + "é" * 90


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """With nothing of an earlier test in it."""
    chromium.look()
    chromium.driver.get("about:blank")
    chromium.requested()
    chromium.complaints()
    yield chromium
    chromium.cdp("Emulation.setScriptExecutionDisabled", value=False)
    chromium.driver.get("about:blank")


async def opened(browser: Browser, url: str) -> None:
    await asyncio.to_thread(browser.driver.get, url)
    await asyncio.to_thread(browser.wait_for, LIVE)


async def test_page_updates_and_makes_no_third_party_requests(browser: Browser, client: Client) -> None:
    await client.embed(["a", "b", "a"])
    await opened(browser, client.proxy.admin_url)
    tile = f"return {TILE}.children[1].textContent"
    assert await asyncio.to_thread(browser.run, tile, "Requests") == "1"
    assert await asyncio.to_thread(browser.run, tile, "Items from cache") == "33.3 %"
    await client.embed("a")
    await asyncio.to_thread(browser.wait_for, f"{TILE}.children[1].textContent === '2'", "Requests")
    assert await asyncio.to_thread(browser.run, tile, "Items from cache") == "50.0 %"
    assert await asyncio.to_thread(browser.run, tile, "Requests from cache") == "50.0 %"
    requested = await asyncio.to_thread(browser.requested)
    origin = client.proxy.admin_url + "/"
    assert {url for url in requested if not url.startswith("data:image/svg+xml,")} == {origin, f"{origin}status.json"}
    assert await asyncio.to_thread(browser.complaints) == []


async def test_request_to_another_origin_is_blocked(
    browser: Browser, client: Client, upstream: ScriptedUpstream
) -> None:
    await opened(browser, client.proxy.admin_url)
    refused = await asyncio.to_thread(
        browser.driver.execute_async_script,
        """
        const [url, done] = arguments, image = new Image();
        const refused = new Promise((resolve) => { image.onerror = () => resolve("image"); image.src = url; });
        Promise.all([refused, fetch(url).then(() => "answered", () => "fetch")]).then(done);
        """,
        upstream.base_url,
    )
    assert refused == ["image", "fetch"]
    complaints = await asyncio.to_thread(browser.complaints)
    assert len([text for text in complaints if "violates the following Content Security Policy" in text]) == 2
    assert not upstream.calls


async def test_model_name_is_rendered_as_text(browser: Browser, client: Client) -> None:
    assert (await client.embed("x", model=HOSTILE)).status == 200
    await opened(browser, client.proxy.admin_url)
    assert (
        await asyncio.to_thread(browser.run, "return document.querySelector('#models tbody th').textContent") == HOSTILE
    )
    assert await asyncio.to_thread(browser.run, "return document.querySelectorAll('img').length") == 0
    assert await asyncio.to_thread(browser.complaints) == []


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("width", [360, 768, 1280])
async def test_page_fits_the_viewport_and_is_accessible(
    browser: Browser, start_proxy: StartProxy, upstream: ScriptedUpstream, width: int, scheme: str
) -> None:
    client = await start_proxy(prices={"*": 1.0})
    for model in ("m", HOSTILE):
        await client.embed(["a", "b", "a"], model=model)
    await client.embed("a")
    await client.proxy.status_page.sample()
    browser.look(width=width, scheme=scheme)
    await opened(browser, client.proxy.admin_url)
    assert await asyncio.to_thread(browser.run, "return document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('table, svg, dl')].filter((one) => one.scrollWidth > one.clientWidth + 1)"
    assert await asyncio.to_thread(browser.run, f"return {wide}.map((one) => one.id)") == []
    page = await asyncio.to_thread(browser.run, "return getComputedStyle(document.body).backgroundColor")
    assert page == {LIGHT: "rgb(246, 247, 247)", DARK: "rgb(18, 22, 25)"}[scheme]
    assert await asyncio.to_thread(violations, browser) == []


def violations(browser: Browser) -> list[str]:
    """What axe-core has against the page: https://github.com/dequelabs/axe-core."""
    browser.run(resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = browser.driver.execute_async_script(
        "const done = arguments[0]; axe.run(document).then((said) => done([said.passes.length, ...said.violations.map("
        "(one) => one.id + ': ' + one.nodes.map((node) => node.html + ' ' + node.failureSummary).join('; '))]))"
    )
    assert found[0] > 20  # it did look
    return [str(text) for text in found[1:]]


async def test_page_works_by_keyboard(browser: Browser, start_proxy: StartProxy) -> None:
    now_s = 100.0
    client = await start_proxy(monotonic=lambda: now_s)
    await client.embed("a")
    await client.proxy.status_page.sample()
    now_s += 400.0
    await opened(browser, client.proxy.admin_url)
    misses = "return document.querySelector('#latency tbody').rows[2].cells[1].textContent"
    assert await asyncio.to_thread(browser.run, misses) == "0"
    body = await asyncio.to_thread(browser.driver.find_element, By.TAG_NAME, "body")
    await asyncio.to_thread(body.send_keys, Keys.TAB)
    focused = await asyncio.to_thread(lambda: browser.driver.switch_to.active_element)
    await asyncio.to_thread(focused.send_keys, Keys.ARROW_RIGHT)
    assert await asyncio.to_thread(browser.run, misses) == "1"


async def test_page_shows_loss_and_return_of_the_proxy(browser: Browser, upstream: ScriptedUpstream) -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(running(settings_for(upstream)))
        await opened(browser, proxy.admin_url)
    await asyncio.to_thread(
        browser.wait_for,
        "document.getElementById('state').textContent.startsWith(\"The proxy can't be reached since \")",
    )
    assert await asyncio.to_thread(browser.run, "return document.getElementById('state').className") == "bad"
    port = int(proxy.admin_url.rsplit(":", 1)[1])
    async with running(settings_for(upstream, admin_port=port)) as again:
        await asyncio.to_thread(browser.wait_for, LIVE)
        again.lifecycle.is_draining = True
        await asyncio.to_thread(
            browser.wait_for, "document.getElementById('state').textContent.startsWith('Live; stopping: ')"
        )


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
async def test_open_circuit_is_shown_at_the_top(browser: Browser, client: Client, scheme: str) -> None:
    browser.look(width=360, scheme=scheme)
    await opened(browser, client.proxy.admin_url)
    client.proxy.metrics.breaker("store_read", "open")
    said = "document.getElementById('state').textContent === 'Live; store_read is open'"
    await asyncio.to_thread(browser.wait_for, said)
    row = "return document.querySelector('#breakers tbody').rows[0].textContent"
    assert await asyncio.to_thread(browser.run, row) == "store_readopen, failing"
    assert await asyncio.to_thread(violations, browser) == []


async def test_hidden_page_does_not_poll(browser: Browser, client: Client) -> None:
    await opened(browser, client.proxy.admin_url)
    counted = await asyncio.to_thread(
        browser.driver.execute_async_script,
        """
        const done = arguments[0], timers = [], counts = [], hide = (is) =>
          Object.defineProperty(document, "hidden", {value: is, configurable: true});
        let asked = 0;
        const realFetch = fetch;
        window.fetch = (...given) => { asked++; return realFetch(...given); };
        window.setTimeout = (callback) => timers.push(callback);
        (async () => {
          await poll();  // takes the timer that was running
          counts.push(asked, timers.length);
          hide(true);
          await timers.pop()();
          counts.push(asked, timers.length);
          hide(false);
          document.dispatchEvent(new Event("visibilitychange"));
          counts.push(asked);
          done(counts);
        })();
        """,
    )
    assert counted == [1, 1, 1, 0, 2]


async def test_page_without_javascript_names_status_json(browser: Browser, client: Client) -> None:
    await asyncio.to_thread(browser.cdp, "Emulation.setScriptExecutionDisabled", value=True)
    await asyncio.to_thread(browser.driver.get, client.proxy.admin_url)
    tree = await asyncio.to_thread(browser.cdp, "Accessibility.getFullAXTree")
    shown = " ".join(str(node["name"]["value"]) for node in tree["nodes"] if not node["ignored"] and "name" in node)
    assert "This page needs JavaScript. The same numbers are at status.json" in " ".join(shown.split())


# --- pages on another origin


@pytest.fixture
async def page() -> AsyncIterator[str]:
    """The origin of a server that has a page, and is not the proxy."""

    async def empty(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="<!doctype html><title>page</title>", content_type="text/html")

    runner = web.ServerRunner(web.Server(empty, access_log=None), shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def fetched(browser: Browser, client: Client, given: Any, *, key: str | None = "sk-test") -> Any:
    """What a script on the page that is open gets: status, three header fields and the body; or its exception."""
    return await asyncio.to_thread(
        browser.driver.execute_async_script,
        """
        const [url, key, input, done] = arguments, headers = {"Content-Type": "application/json"};
        if (key !== null) headers.Authorization = "Bearer " + key;
        fetch(url + "/embeddings", {method: "POST", headers, body: JSON.stringify({model: "m", input})}).then(
          async (response) => done([
            response.status,
            ...["X-Cache", "X-Cache-Saved-Tokens", "Cache-Status"].map((name) => response.headers.get(name)),
            await response.json(),
          ]),
          (error) => done(String(error)),
        );
        """,
        client.proxy.base_url,
        key,
        given,
    )


REFUSED = "TypeError: Failed to fetch"
MISS = [200, "MISS", "0", "embedding-proxy; fwd=miss; fwd-status=200; stored"]
HIT = [200, "HIT", "1", "embedding-proxy; hit"]


@pytest.mark.parametrize("policy", [reflects, everyone, everyone_who_asks])
async def test_origin_allowed_by_the_upstream_reads_hits(
    browser: Browser, client: Client, upstream: ScriptedUpstream, page: str, policy: Policy
) -> None:
    Browsable(upstream, policy)
    await asyncio.to_thread(browser.driver.get, page)
    answers = [await fetched(browser, client, "x") for _ in range(4)]
    assert [answer[:4] for answer in answers] == [MISS, HIT, HIT, HIT]
    assert len({str(answer[4]["data"]) for answer in answers}) == 1
    methods = [call.method for call in upstream.calls]
    assert methods.count("POST") == 1
    assert methods[0] == "OPTIONS"


async def test_origin_not_allowed_by_the_upstream_reads_nothing(
    browser: Browser, client: Client, upstream: ScriptedUpstream, page: str
) -> None:
    Browsable(upstream, nobody)
    await client.embed("x")
    await asyncio.to_thread(browser.driver.get, page)
    assert await fetched(browser, client, "x") == REFUSED


def without_cors(upstream: ScriptedUpstream) -> None:
    """Make it one that knows no preflights and answers no web page, as Ollama where its list lacks the origin."""

    def reply(call: Call) -> web.StreamResponse:
        if call.method == "OPTIONS" or "Origin" in call.headers:
            return web.json_response({}, status=403)
        return upstream.embed(call)

    upstream.reply = reply


@pytest.mark.parametrize("origins", ["the page's", "*"])
async def test_origin_allowed_by_the_operator_reads_every_response(
    browser: Browser, start_proxy: StartProxy, upstream: ScriptedUpstream, page: str, origins: str
) -> None:
    without_cors(upstream)
    client = await start_proxy(cors_origins=frozenset({"*" if origins == "*" else page}), max_body_bytes=1000)
    await asyncio.to_thread(browser.driver.get, page)
    answers = [await fetched(browser, client, "x") for _ in range(2)]
    assert [answer[:4] for answer in answers] == [MISS, HIT]
    large = await fetched(browser, client, "x" * 1000)
    assert (large[0], large[4]["error"]["code"]) == (413, "body_too_large")


async def test_origin_not_allowed_by_the_operator_reads_nothing(
    browser: Browser, start_proxy: StartProxy, upstream: ScriptedUpstream, page: str
) -> None:
    Browsable(upstream, everyone)
    client = await start_proxy(cors_origins=frozenset({"https://app.example.com"}))
    await asyncio.to_thread(browser.driver.get, page)
    assert await fetched(browser, client, "x") == REFUSED
    assert not upstream.calls


@pytest.mark.parametrize("by_operator", [False, True])
async def test_page_with_a_client_key_is_served(
    browser: Browser, start_proxy: StartProxy, upstream: ScriptedUpstream, page: str, tmp_path: Path, by_operator: bool
) -> None:
    key = client_keys.add(tmp_path / "clients", "page")
    if by_operator:
        without_cors(upstream)
    else:
        Browsable(upstream, reflects)
    client = await start_proxy(
        upstream=UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-owned"),
        client_keys=tmp_path / "clients",
        cors_origins=frozenset({page} if by_operator else ()),
    )
    await asyncio.to_thread(browser.driver.get, page)
    answers = [await fetched(browser, client, "x", key=key) for _ in range(2)]
    assert [answer[:4] for answer in answers] == [MISS, HIT]
    unknown = await fetched(browser, client, "x")
    assert (unknown[0], unknown[4]["error"]["code"]) == (401, "invalid_api_key")
    sent = {call.method: call.headers.get("Authorization") for call in upstream.calls}
    assert sent == {"POST": "Bearer sk-owned", **({} if by_operator else {"OPTIONS": None})}


@pytest.mark.parametrize("is_allowed", [False, True])
async def test_only_allowed_origins_use_the_key_of_a_loopback_proxy(
    browser: Browser, start_proxy: StartProxy, upstream: ScriptedUpstream, page: str, is_allowed: bool
) -> None:
    own = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-owned")
    origins = frozenset({page if is_allowed else "https://app.example.com"})
    client = await start_proxy(upstream=own, cors_origins=origins)
    await asyncio.to_thread(browser.driver.get, page)
    answers = [await fetched(browser, client, "x", key=None) for _ in range(2)]
    assert [answer[:4] if is_allowed else answer for answer in answers] == (
        [MISS, HIT] if is_allowed else [REFUSED] * 2
    )
    assert len(upstream.calls) == is_allowed
