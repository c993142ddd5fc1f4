"""An explanation says what the proxy does: it agrees with the keys, and gives away no secret."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from multidict import CIMultiDict

from proxy.config.settings import Settings, UpstreamSetting
from proxy.embeddings.reader import BypassedRequest
from proxy.explain.explanation import explain
from proxy.explain.http_request import HTTPRequest
from proxy.explain.report import Explanation, Keying
from proxy.fetch.request import ClientRequest
from proxy.labels import BypassReason
from proxy.maintenance.identity import open_request_reader
from proxy.protocol.bypass import EXPLANATIONS
from proxy.protocol.header_kinds import KINDS, Rule
from proxy.protocol.parameters import MEANINGS, FieldClass
from proxy.protocol.providers import PROVIDERS
from proxy.protocol.records import Record
from proxy.protocol.vectors import DType, Vector
from tests.support.settings import DEFAULTS

BODY = {"model": "m", "input": ["a", "b"]}
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer sk-secret"}
NOW_S = 2_000_000.0


def settings_with(provider: str = "openai", **changes: Any) -> Settings:
    upstream = UpstreamSetting(name="up", base_url="http://user:pw-secret@h/v1", provider=PROVIDERS[provider])
    return replace(DEFAULTS, **{"upstream": upstream, **changes})


async def read(request: HTTPRequest, settings: Settings) -> ClientRequest | BypassedRequest:
    async with open_request_reader(settings) as reader:
        return await reader.read(request.body, request.headers, request.target)


async def explained(
    body: object = BODY,
    headers: dict[str, str] = HEADERS,
    *,
    settings: Settings | None = None,
    target: str = "/v1/embeddings",
    stored: dict[int, Record] | None = None,
) -> Explanation:
    """``stored`` are records by the positions of the items."""
    settings = settings or settings_with()
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    request = HTTPRequest(target=target, headers=CIMultiDict(headers), body=content)
    understood = await read(request, settings)
    records = None
    if stored is not None:
        assert isinstance(understood, ClientRequest)
        records = {understood.spec.keys[position]: record for position, record in stored.items()}
    return explain(request, understood, settings, stored=records, now_s=NOW_S)


def record(age_s: int = 60, model: str = "m-1") -> Record:
    vector = Vector(DType.FLOAT32_SHORTEST, bytes(range(1, 9)))
    return Record(vector=vector, model=model, tokens=3, tokens_exact=False, stored_at_s=int(NOW_S) - age_s)


# --- it agrees with the keys

FIELDS = [
    "Authorization", "X-Api-Key", "Cookie", "traceparent", "X-Request-Id", "OpenAI-Organization", "X-Model", "Accept",
    "X-Portkey-Config", "X-Portkey-Trace-Id", "Helicone-Auth", "X-Forwarded-User", "X-Plan", "X-Session-Token",
    "Cache-Control", "Priority", "Baggage", "Keep-Alive", "Host", "X-Tenant-Id", "X-Amzn-Oidc-Data", "X-Named",
]  # fmt: skip


@pytest.mark.parametrize("with_credential", [True, False])
@pytest.mark.parametrize("way", ["credential", "share", "own"])
@pytest.mark.parametrize("name", FIELDS)
async def test_a_header_field_is_in_the_key_if_its_value_changes_the_keys(
    name: str, way: str, *, with_credential: bool
) -> None:
    settings = settings_with(
        key_headers=frozenset({"x-plan"}), neutral_headers=frozenset({"x-session-token"}), shares_all=way == "share"
    )
    if way == "own":
        settings = replace(settings, upstream=replace(settings.upstream, key="held"))
    given = {"Content-Type": "application/json"} | ({"Authorization": "Bearer other"} if with_credential else {})
    keys = set()
    for value in ("one", "two"):
        explanation = await explained(headers=given | {name: value}, settings=settings)
        keys.add(tuple(item.key for item in explanation.items))
    (field,) = [field for field in explanation.headers if field.name == name]
    assert field.is_in_key is (len(keys) == 2), field


PARAMETERS = {
    "openai": ["dimensions", "user", "encoding_format", "stream", "unknown"],
    "voyage": ["input_type", "output_dtype", "encoding_format", "truncation"],
    "jina": ["late_chunking", "task", "embedding_type"],
    "vllm": ["embed_dtype", "normalize", "request_id", "priority"],
}
VALUES = [1, 2, True, False, None, "float", "base64", "int8", "float32", [1], "x"]


@pytest.mark.parametrize(("provider", "name"), [(row, name) for row, names in PARAMETERS.items() for name in names])
async def test_a_field_of_the_body_is_in_the_key_if_it_changes_the_keys(provider: str, name: str) -> None:
    settings = settings_with(provider)
    without = await explained(settings=settings)
    for value in VALUES:
        explanation = await explained({**BODY, name: value}, settings=settings)
        if explanation.keyed is not Keying.ITEMS:
            assert explanation.reason is not None
            assert explanation.advice
            continue
        (field,) = [field for field in explanation.body if field.name == name]
        assert field.is_in_key is (explanation.items != without.items), (value, field)


def test_everything_that_decides_is_explained() -> None:
    assert set(EXPLANATIONS) == set(BypassReason)
    assert set(KINDS) == set(Rule)
    assert set(MEANINGS) == set(FieldClass)


# --- outcomes


async def test_without_a_store_the_outcome_is_not_known() -> None:
    explanation = await explained()
    assert (explanation.keyed, explanation.outcome, explanation.reason) == (Keying.ITEMS, None, None)
    assert "--revalidate" in explanation.notes[0]


@pytest.mark.parametrize(
    ("stored", "cache_control", "outcome", "why"),
    [
        ({}, "", "MISS", "none of the items is stored"),
        ({0: record()}, "", "PARTIAL", "1 of 2 distinct items are stored"),
        ({0: record(), 1: record()}, "", "HIT", "all items are stored"),
        ({0: record(), 1: record(model="m-2")}, "", "MISS", "the entries are of different model versions"),
        ({0: record(), 1: record()}, "no-cache", "MISS", "Cache-Control: no-cache fetches every item again"),
        ({0: record(), 1: record(90)}, "max-age=70", "PARTIAL", "1 of 2 distinct items are stored; 1 more are older"),
        ({0: record()}, "only-if-cached", "504", "only-if-cached, and 1 distinct items are not stored"),
    ],
)
async def test_the_outcome_follows_from_what_is_stored(
    stored: dict[int, Record], cache_control: str, outcome: str, why: str
) -> None:
    explanation = await explained(headers=HEADERS | {"Cache-Control": cache_control}, stored=stored)
    assert explanation.outcome == outcome
    assert explanation.why.startswith(why)


async def test_it_says_since_when_an_item_is_stored() -> None:
    explanation = await explained(stored={1: record(100)}, settings=settings_with(ttl_s=50.0))
    assert explanation.items[0].stored is None
    stored = explanation.items[1].stored
    assert stored is not None
    assert (stored.since, stored.age_s, stored.is_served) == ("1970-01-24T03:31:40+00:00", 100, False)
    assert (stored.dimensions, stored.dtype, stored.model, stored.tokens) == (2, "float32_shortest", "m-1", 3)
    assert explanation.outcome == "MISS"


@pytest.mark.parametrize(
    ("body", "headers", "keyed", "reason", "field", "advice"),
    [
        (
            {**BODY, "foo": 1},
            HEADERS,
            Keying.WHOLE,
            "unknown-field",
            "foo",
            "say what the field does: [prov",
        ),
        ({**BODY, "stream": True}, HEADERS, Keying.NOTHING, "stream", "stream", "let the client leave out stream"),
        (
            {"model": "m", "input": [""]},
            HEADERS,
            Keying.WHOLE,
            "empty-item",
            None,
            "let the client leave out e",
        ),
        (b"{", HEADERS, Keying.NOTHING, "not-json", None, "let the client send valid JSON"),
        (
            BODY,
            {**HEADERS, "Content-Type": "text/plain"},
            Keying.NOTHING,
            "content-type",
            None,
            "let the client",
        ),
        (BODY, {**HEADERS, "Digest": "x"}, Keying.NOTHING, "signed-body", None, "let the client authenticate"),
    ],
)
async def test_why_a_request_is_not_cached_item_by_item(
    body: object, headers: dict[str, str], keyed: Keying, reason: str, field: str | None, advice: str
) -> None:
    explanation = await explained(body, headers)
    assert (explanation.keyed, explanation.reason, explanation.field) == (keyed, reason, field)
    assert explanation.advice[0].startswith(advice)
    assert explanation.merging.startswith("never merged")
    if keyed is Keying.NOTHING:
        assert (explanation.outcome, explanation.key, explanation.items) == ("BYPASS", None, [])


async def test_it_advises_on_fields_that_only_sound_as_if() -> None:
    explanation = await explained(headers=HEADERS | {"X-Team-Region": "eu"})
    assert list(explanation.advice) == ["if it does not change the vector, set --neutral-headers x-team-region"]


async def test_no_secret_and_no_text_is_in_it() -> None:
    headers = {
        "Content-Type": "application/json",
        "Authorization": "Bearer the-secret",
        "Cookie": "session=the-secret",
        "X-Portkey-Virtual-Key": "the-secret",
        "X-Session-Token": "the-secret",
        "X-Goog-Iap-Jwt-Assertion": "the-secret",
        "Proxy-Authorization": "the-secret",
        "Referer": "http://h/?token=the-secret",
        "X-Session": "the-secret",
    }
    own = {"texts": ["the-secret"], "prompt": "the-secret", "user": "the-secret", "more": {"token": "the-secret"}}
    body = {"model": "m", "input": ["the-secret text"], "foo": "http://the", **own}
    target = "/v1/embeddings?api-key=the-secret&code=the-secret&api-version=1"
    for settings in (settings_with(), settings_with(neutral_headers=frozenset({"x-session-token"}))):
        explanation = await explained(body, headers, settings=settings, target=target)
        shown = orjson.dumps(explanation)
        assert b"secret" not in shown
        assert b"user:" not in shown
        assert b"api-version=1" in shown
