"""Which requests are served: the matrix of credentials, and the proxy's own key."""

import itertools
from pathlib import Path

import pytest
from aiohttp import WSServerHandshakeError, web

from proxy.access import client_keys
from proxy.config.settings import UpstreamSetting
from proxy.protocol.providers import PROVIDERS
from tests.conftest import StartProxy
from tests.support.client import Client, UpstreamResponse
from tests.support.guarded import INVALID, REVALIDATE_S, Clock, Guarded
from tests.support.scripted import Call, ScriptedUpstream, error_reply

KINDS = ("valid", "invalid", "revoked", "other tenant", "none", "expired validation")
HITS = ("miss", "partial", "all-hit")
SHARINGS = ("credential", "all", "owned")
STATES = ("up", "down")


def expected(kind: str, hit: str, sharing: str, state: str) -> int:  # noqa: PLR0911 - it is the table
    """The status that the rules require."""
    if sharing == "owned":
        if kind in {"invalid", "revoked", "none"}:
            return 401  # the proxy's own list says so, whatever the upstream does
        return 200 if state == "up" or hit == "all-hit" else 502
    if state == "up":
        return 401 if kind in {"invalid", "revoked", "none"} else 200
    if hit != "all-hit":
        return 502
    if kind == "valid" or (kind == "revoked" and sharing == "credential"):
        return 200  # what it stored needed a 2xx, and nobody says otherwise
    if kind == "revoked":
        return 200  # validated a short time ago
    if kind == "expired validation":
        return 200 if sharing == "credential" else 502
    return 502  # nothing in a scope of its own, or in a shared one never validated


CELLS = list(itertools.product(KINDS, HITS, SHARINGS, STATES))


@pytest.mark.parametrize(("kind", "hit", "sharing", "state"), CELLS, ids=["-".join(cell) for cell in CELLS])
async def test_each_credential_gets_the_status_that_the_rules_require(
    start_proxy: StartProxy, upstream: ScriptedUpstream, guarded: Guarded, clock: Clock, tmp_path: Path,
    kind: str, hit: str, sharing: str, state: str,
) -> None:  # fmt: skip
    setup = await Setup.make(start_proxy, upstream, clock, tmp_path, sharing)
    first, second = setup.keys
    # Somebody has asked for these before, and in these words so often that the request itself is known.
    for items in (["a", "b"], ["b", "a"], ["b", "a"], ["b", "a"]):
        assert (await setup.ask(first, items)).status == 200
    key = {"invalid": "never-heard-of", "none": None, "other tenant": second}.get(kind, first)
    if kind == "revoked":
        setup.revoke(first, guarded)
    if kind == "expired validation" or (kind == "revoked" and state == "up"):
        clock.now += REVALIDATE_S  # until then the upstream's last word counts
    guarded.is_down = state == "down"
    items = {"miss": ["c", "d"], "partial": ["a", "c"], "all-hit": ["b", "a"]}[hit]
    if kind == "other tenant" and sharing == "credential" and state == "down":
        assert (await setup.ask(key, items)).status == 502
        return
    upstream.calls.clear()
    answer = await setup.ask(key, items)
    status = expected(kind, hit, sharing, state)
    assert answer.status == status, answer.body
    if status == 200:
        assert len(answer.vectors) == len(items)
    elif status == 401 and sharing != "owned":
        assert answer.body == INVALID
    if sharing == "owned":
        assert {call.headers["Authorization"] for call in upstream.calls} <= {"Bearer owned"}
        assert status != 401 or not upstream.calls


class Setup:
    """A proxy in one of the three ways to share, and two clients' keys for it."""

    def __init__(self, client: Client, keys: tuple[str, str], path: Path | None) -> None:
        self._client = client
        self.keys = keys
        self._path = path

    @classmethod
    async def make(
        cls, start_proxy: StartProxy, upstream: ScriptedUpstream, clock: Clock, folder: Path, sharing: str
    ) -> "Setup":
        if sharing != "owned":
            client = await start_proxy(monotonic=clock, shares_all=sharing == "all", revalidate_s=REVALIDATE_S)
            return cls(client, ("first", "second"), None)
        path = folder / "clients"
        keys = client_keys.add(path, "first"), client_keys.add(path, "second")
        setting = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="owned")
        client = await start_proxy(monotonic=clock, upstream=setting, client_keys=path, revalidate_s=REVALIDATE_S)
        return cls(client, keys, path)

    def revoke(self, key: str, guarded: Guarded) -> None:
        if self._path is None:
            guarded.keys.discard(f"Bearer {key}")
            return
        client_keys.revoke(self._path, "first")
        assert self._client.proxy.client_keys is not None
        self._client.proxy.client_keys.reload()

    async def ask(self, key: str | None, items: list[str]) -> UpstreamResponse:
        return await self._client.post({"model": "m", "input": items}, key=None if key is None else f"Bearer {key}")


async def owning(
    start_proxy: StartProxy, upstream: ScriptedUpstream, folder: Path, provider: str = "generic"
) -> tuple[Client, str]:
    key = client_keys.add(folder / "clients", "app")
    own = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="sk-owned", provider=PROVIDERS[provider])
    return await start_proxy(upstream=own, client_keys=folder / "clients"), key


@pytest.mark.parametrize(
    ("provider", "name", "value"), [("openai", "Authorization", "Bearer sk-owned"), ("azure", "api-key", "sk-owned")]
)
async def test_the_upstream_sees_the_proxys_key_and_nothing_of_the_clients(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, provider: str, name: str, value: str
) -> None:
    client, key = await owning(start_proxy, upstream, tmp_path, provider)
    sent_along = {"Cookie": "session=1", "X-Auth-Token": "t", "x_api_key": key, "X-Trace": "kept"}
    sent_along |= {"OpenAI-Organization": "another", "Helicone-Target-Url": "https://evil.example"}
    assert (await client.post({"model": "m", "input": "a"}, key=f"Bearer {key}", **sent_along)).cache == "MISS"
    assert (await client.post({"model": "m", "input": "a", "stream": True}, key=f"Bearer {key}")).cache == "BYPASS"
    upstream.reply = error_reply(200, {"data": []})
    assert (await client.send("GET", "/v1/models", headers={"x-api-key": key})).status == 200
    for call in upstream.calls:
        assert call.headers[name] == value
        everything = " ".join(f"{field}: {said}" for field, said in call.headers.items())
        assert key not in everything
        assert "session=1" not in everything
        assert not {"X-Auth-Token", "OpenAI-Organization", "Helicone-Target-Url"} & set(call.headers)
    assert upstream.calls[0].headers["X-Trace"] == "kept"


@pytest.mark.parametrize("target", ["/v1/embeddings", "/v1/models", "/v1/realtime"])
async def test_requests_without_a_listed_key_are_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, target: str
) -> None:
    client, key = await owning(start_proxy, upstream, tmp_path)
    websocket = {"Upgrade": "websocket", "Connection": "Upgrade"}
    for fields in ({}, {"Authorization": "Bearer x"}, {"Authorization": key}, {"api-key": key + "x"}, websocket):
        answer = await client.send("GET" if fields is websocket else "POST", target, body=b"{}", headers=fields)
        assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
    assert not upstream.calls


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("kind", ["embeddings", "bypass", "other"])
async def test_the_upstreams_refusal_of_the_proxys_key_is_not_relayed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, status: int, kind: str
) -> None:
    client, key = await owning(start_proxy, upstream, tmp_path)
    upstream.reply = error_reply(status, b'{"error":"Incorrect API key: sk-owned"}')
    body = {"model": "m", "input": "a"} | ({"stream": True} if kind == "bypass" else {})
    target = "/v1/other" if kind == "other" else "/v1/embeddings"
    answer = await client.post(body, target=target, key=f"Bearer {key}")
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_key_refused")
    assert b"sk-owned" not in answer.body


async def test_clients_of_one_proxy_share_entries(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    client, key = await owning(start_proxy, upstream, tmp_path)
    other = client_keys.add(tmp_path / "clients", "other")
    assert client.proxy.client_keys is not None
    client.proxy.client_keys.reload()
    body = {"model": "m", "input": "a"}
    assert [(await client.post(body, key=f"Bearer {one}")).cache for one in (key, other)] == ["MISS", "HIT"]


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_the_upstreams_cookies_go_only_to_the_holder_of_the_key(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, status: int
) -> None:
    """They may be a session that replaces the key."""
    owner, key = await owning(start_proxy, upstream, tmp_path)

    def reply(call: Call) -> web.Response:
        content = upstream.answer_to(call.json) if status == 200 and call.body else {}
        return web.json_response(content, status=status, headers={"Set-Cookie": "session=1"})

    upstream.reply = reply
    for client, bearer in ((owner, f"Bearer {key}"), (await start_proxy(), "Bearer own")):
        answers = [
            await client.post({"model": "m", "input": "x"}, key=bearer),
            await client.post({"model": "m", "input": ["y", "y"]}, key=bearer),
            await client.post({"model": "m", "input": "x", "stream": True}, key=bearer),
            await client.send("GET", "/v1/models", headers={"Authorization": bearer}),
        ]
        assert {answer.status for answer in answers} == {status}
        assert {"Set-Cookie" in answer.headers for answer in answers} == {client is not owner}
        with pytest.raises(WSServerHandshakeError) as refused:
            await client.session.ws_connect(client.origin + "/v1/x", headers={"Authorization": bearer})
        assert ("Set-Cookie" in (refused.value.headers or {})) == (client is not owner)
