"""The keys that are derived without a request are those under which a proxy stores the same request's items."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from proxy.config.settings import StoreSetting, UpstreamSetting
from proxy.errors import ConfigError
from proxy.maintenance.identity import RequestForm, open_request_reader
from proxy.protocol import records
from proxy.protocol.providers import PROVIDERS
from tests.conftest import StartProxy
from tests.support.dict_store import written
from tests.support.scripted import ScriptedUpstream
from tests.support.settings import settings_for

TEXTS = ["one", "two", "drei", "vier é"]
KEY = "secret-of-a-client"


def stored_keys(path: Path) -> set[bytes]:
    with closing(sqlite3.connect(path)) as connection:
        return {key for (key,) in connection.execute("SELECT key FROM slot")}


def form(model: str = "m", **changes: Any) -> RequestForm:
    return RequestForm(model=model, credential=KEY, **changes)


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, form()),
        ({"shares_all": True}, form()),
        ({}, form(fields={"dimensions": 2})),
        ({}, form(headers=[("OpenAI-Organization", "org")])),
        ({"key_headers": frozenset({"x-team"})}, form(headers=[("X-Team", "a")])),
        ({"neutral_headers": frozenset({"x-session-token"})}, form(headers=[("X-Session-Token", "a")])),
        ({"upstream_key": "the-proxys-own"}, form()),
        ({"routed": True}, form(model="other/1")),
        ({"provider": "azure"}, form(path="/openai/deployments/d/embeddings?api-version=2024-10-21")),
    ],
)
async def test_the_keys_are_those_of_requests(
    start_proxy: StartProxy, upstream: ScriptedUpstream, sqlite_path: Path, changes: dict[str, Any], asked: RequestForm
) -> None:
    settings = dict(changes)
    own = settings_for(upstream).upstream
    if key := settings.pop("upstream_key", None):
        settings["upstream"] = UpstreamSetting(name="s", base_url=own.base_url, key=key)
    if provider := settings.pop("provider", None):
        settings["upstream"] = UpstreamSetting(name="s", base_url=own.base_url, provider=PROVIDERS[provider])
    if settings.pop("routed", None):
        settings["routed"] = (UpstreamSetting(name="r", base_url=f"{own.base_url}/r/v1", models=("other/*",)),)
    settings["store"] = StoreSetting(path=sqlite_path)
    client = await start_proxy(**settings)
    async with open_request_reader(settings_for(upstream, **settings)) as reader:
        keys = await reader.keys_of(TEXTS, asked)
        headers = reader.headers_of(asked)
    assert len(set(keys)) == len(TEXTS)
    async with client.session.post(
        f"{client.origin}{asked.path}", json={"model": asked.model, "input": TEXTS, **asked.fields}, headers=headers
    ) as response:
        assert response.status == 200, await response.text()
    await written(client.proxy.cache)
    assert stored_keys(sqlite_path) == set(keys)


@pytest.mark.parametrize(
    ("changes", "asked", "scopes"),
    [
        ({}, form(), 1),
        ({}, form(headers=[("X-Api-Key", "another")]), 1),
        ({"routed": (UpstreamSetting(name="r", base_url="http://h/v1", models=("r/*",)),)}, form(), 1),
        (
            {"routed": (UpstreamSetting(name="r", base_url="http://h", models=("r/*",), provider=PROVIDERS["azure"]),)},
            form(),
            2,  # either field may have the key
        ),
    ],
)
async def test_a_credentials_scope_is_that_of_the_records_of_its_requests(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    sqlite_path: Path,
    changes: dict[str, Any],
    asked: RequestForm,
    scopes: int,
) -> None:
    settings = {**changes, "store": StoreSetting(path=sqlite_path)}
    client = await start_proxy(**settings)
    async with open_request_reader(settings_for(upstream, **settings)) as reader:
        found = reader.scopes_of(asked)
        headers = reader.headers_of(asked)
        others = reader.scopes_of(replace(asked, credential="of-another-client"))
    assert (len(found), found & others) == (scopes, set())
    async with client.session.post(
        f"{client.origin}{asked.path}", json={"model": asked.model, "input": TEXTS}, headers=headers
    ) as response:
        assert response.status == 200
    await written(client.proxy.cache)
    with closing(sqlite3.connect(sqlite_path)) as connection:
        values = dict(connection.execute("SELECT key, value FROM value"))
    assert len(values) == len(TEXTS)
    assert {records.decode(key, value).scope for key, value in values.items()} <= found


@pytest.mark.parametrize(
    "changes", [{"shares_all": True}, {"upstream": UpstreamSetting(name="s", base_url="http://h/v1", key="own")}]
)
async def test_a_credential_has_no_scope_where_all_clients_share_one(
    upstream: ScriptedUpstream, changes: dict[str, Any]
) -> None:
    async with open_request_reader(settings_for(upstream, **changes)) as reader:
        with pytest.raises(ConfigError, match="all clients share the entries"):
            reader.scopes_of(form())


async def test_what_is_not_cached_text_by_text_has_no_keys(upstream: ScriptedUpstream) -> None:
    async with open_request_reader(settings_for(upstream)) as reader:
        with pytest.raises(ConfigError, match="does not cache such a request text by text: unknown-field wat"):
            await reader.keys_of(TEXTS, form(fields={"wat": [1]}))
        assert await reader.keys_of([], form()) == []
        many = await reader.keys_of([f"text {n}" for n in range(2500)], form())
        assert len(set(many)) == 2500
        (again,) = await reader.keys_of(["text 2400"], form())
        assert again == many[2400]
        assert CIMultiDict(reader.headers_of(form()))["Authorization"] == f"Bearer {KEY}"
