"""What is stored, what stays, and what is refused by its line."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec.structs
import numpy as np
import orjson
import pytest

from proxy.config.settings import UpstreamSetting
from proxy.embeddings.reader import BypassedRequest
from proxy.errors import ConfigError
from proxy.fetch.request import ClientRequest
from proxy.filling.loader import Loader, LoadPolicy
from proxy.filling.paid import PaidCall, PaidText
from proxy.filling.results import Loaded, RefusedText
from proxy.maintenance.identity import RequestForm, open_request_reader
from proxy.protocol import records
from proxy.protocol.providers import PROVIDERS
from proxy.protocol.records import Record, RecordKey
from tests.support.dict_store import DictStore
from tests.support.settings import DEFAULTS

NOW_S = 5000.0
OPENAI = replace(
    DEFAULTS, upstream=UpstreamSetting(name="openai", base_url="http://h/v1", provider=PROVIDERS["openai"])
)
FORM = RequestForm(model="m", credential="sk")


def numbers(*values: float) -> bytes:
    return orjson.dumps(list(values))


async def load(store: DictStore, paid: Sequence[Any], form: RequestForm = FORM, **policy: Any) -> Loaded:
    async with open_request_reader(OPENAI) as reader:

        async def read_texts(texts: Sequence[str]) -> ClientRequest:
            return await reader.read_texts(texts, form)

        async def read_call(body: bytes, path: str) -> ClientRequest:
            read = await reader.read(body, reader.headers_of(form), path)
            if isinstance(read, BypassedRequest):
                raise ConfigError(f"not cached: {read.bypass.reason}")
            return read

        policy = {"ttl_s": None, **policy}
        progress: list[int] = []
        loader = Loader(
            store, read_texts, read_call, LoadPolicy(**policy), advance=progress.append, clock=lambda: NOW_S
        )
        await loader.run(paid)
        assert sum(progress) == loader.loaded.lines == len(paid)
        return loader.loaded


async def stored(store: DictStore, text: str, form: RequestForm = FORM) -> Record:
    async with open_request_reader(OPENAI) as reader:
        (key,) = await reader.keys_of([text], form)
    return records.decode(key, store.values[key])


async def test_texts_are_stored_under_the_keys_of_requests() -> None:
    store = DictStore()
    loaded = await load(store, [PaidText(1, "a", numbers(0.1, 0.2), 9), PaidText(2, "büc", numbers(0.3, 0.4))])
    assert loaded == Loaded(lines=2, stored=2)
    first, second = await stored(store, "a"), await stored(store, "büc")
    assert first.vector.array().tolist() == np.array([0.1, 0.2], np.float32).tolist()
    assert (first.tokens, first.tokens_exact, first.model, first.stored_at_s) == (9, True, "", 5000)
    assert (second.tokens, second.tokens_exact) == (2, False)


async def test_fields_and_credentials_are_part_of_the_keys() -> None:
    store = DictStore()
    other = replace(FORM, fields={"dimensions": 2})
    paid = [PaidText(1, "a", numbers(0.1, 0.2))]
    for form in (FORM, other, replace(FORM, credential="sk-2")):
        assert (await load(store, paid, form, response_model="m-1")).stored == 1
    assert len(store.values) == 3
    assert (await stored(store, "a", other)).model == "m-1"


async def test_what_is_stored_stays_without_overwrite() -> None:
    store = DictStore()
    await load(store, [PaidText(1, "a", numbers(0.1, 0.2)), PaidText(2, "b", numbers(0.5, 0.2))])
    paid = [
        PaidText(1, "a", numbers(0.1, 0.2)),
        PaidText(2, "b", numbers(0.7, 0.7)),
        PaidText(3, "c", numbers(0.3, 0.3)),
        PaidText(4, "c", numbers(0.4, 0.4)),
    ]
    dry = await load(store, paid, is_dry_run=True)
    assert len(store.values) == 2
    assert await load(store, paid) == dry == Loaded(lines=4, stored=1, same=1, kept=1, repeated=1)
    assert (await stored(store, "b")).vector.array()[0] == np.float32(0.5)
    assert (await stored(store, "c")).vector.array()[0] == np.float32(0.3)
    assert await load(store, paid, overwrite=True) == Loaded(lines=4, same=2, replaced=1, repeated=1)
    assert (await stored(store, "b")).vector.array()[0] == np.float32(0.7)
    assert store.log != []  # running proxies hear of it


async def test_what_no_proxy_would_serve_is_in_nobodys_way() -> None:
    store = DictStore()
    paid = [PaidText(1, "a", numbers(0.1, 0.2))]
    await load(store, paid)
    (key,) = store.values
    store.values[key] = b"damaged"
    assert (await load(store, paid)).stored == 1
    record = msgspec.structs.replace(records.decode(key, store.values[key]), stored_at_s=100)
    store.values[key] = records.encode(key, record)
    assert (await load(store, paid, ttl_s=10000.0)).same == 1
    assert (await load(store, paid, ttl_s=1000.0)).stored == 1
    assert records.decode(key, store.values[key]).stored_at_s == 5000
    secret = RecordKey(b"x" * 32)
    assert (await load(store, paid, record_key=secret)).stored == 1
    assert records.decode(key, store.values[key], secret).tokens == 1


async def test_refused_lines_are_named_and_the_others_are_stored() -> None:
    store = DictStore()
    paid = [
        PaidText(1, "a", numbers(0.1, 0.2)),
        RefusedText(2, "no text"),
        PaidText(3, "b", b"[null]"),
        PaidText(4, "c", numbers(0.1, 0.2, 0.3)),
        PaidText(5, "d", numbers(0.3, 0.2)),
        PaidText(6, "e", numbers(0.1 / 3, 0.2)),
    ]
    loaded = await load(store, paid)
    assert (loaded.lines, loaded.stored, loaded.refused) == (6, 2, 4)
    assert [refused.line for refused in loaded.refusals] == [2, 3, 4, 6]
    reasons = {refused.line: refused.reason for refused in loaded.refusals}
    assert reasons[4] == "a vector of 3 numbers, and others of the model have 2"
    assert reasons[6].startswith("not the numbers of a float32 vector")
    loaded = await load(store, paid[:1], replace(FORM, fields={"dimensions": 4}))
    assert loaded.refusals == [RefusedText(1, "a vector of 2 numbers, and the request asks for 4")]


async def test_a_text_that_is_not_cached_costs_no_other() -> None:
    store = DictStore()
    form = replace(FORM, fields={"foo": 1})
    loaded = await load(store, [PaidText(line, "a", numbers(0.1)) for line in (1, 2)], form)
    assert (loaded.stored, loaded.refused) == (0, 2)
    assert loaded.refusals[0].reason.startswith("the proxy does not cache such a request text by text: unknown-field")


async def test_many_are_stored_in_several_writes() -> None:
    store = DictStore()
    loaded = await load(store, [PaidText(line, f"text {line}", numbers(0.1, line)) for line in range(1, 1300)])
    assert (loaded.stored, len(store.values)) == (1299, 1299)


# --- calls of a batch


def call(line: int, given: Any, vectors: list[Any], *, tokens: int = 6, **fields: Any) -> PaidCall:
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    response = {"data": data, "model": "m-1", "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    body = {"model": "m", "input": given, **fields}
    return PaidCall(line, "/v1/embeddings", orjson.dumps(body), orjson.dumps(response))


async def test_a_call_is_stored_as_its_response_would_have_been() -> None:
    store = DictStore()
    loaded = await load(store, [call(1, ["a", "bbb"], [[0.1, 0.2], [0.3, 0.4]], tokens=8), call(2, "c", [[0.5, 0.6]])])
    assert loaded == Loaded(lines=2, stored=3)
    record = await stored(store, "bbb")
    assert (record.model, record.tokens, record.tokens_exact) == ("m-1", 6, False)
    assert (await stored(store, "c")).tokens_exact


@pytest.mark.parametrize(
    ("paid", "reason"),
    [
        (call(3, ["a", "b"], [[0.1, 0.2]]), "not as many vectors as items"),
        (call(3, ["a", "b"], [[0.1, 0.2], [0.1]]), "vectors of several lengths"),
        (call(3, "a", [[0.0, 0.0]]), "a number that is not finite, all zeros"),
        (call(3, "a", [[0.1, 0.2]], stream=True), "not cached: stream"),
        (call(3, "a", [[0.1, 0.2]], dimensions=3), "a vector of 2 numbers, and the request asks for 3"),
        (
            PaidCall(3, "/v1/embeddings", b'{"model":"m","input":"a"}', b'{"error":{"code":5}}'),
            "an error in place of vectors",
        ),
    ],
)
async def test_a_call_without_valid_vectors_is_refused(paid: PaidCall, reason: str) -> None:
    loaded = await load(DictStore(), [paid])
    assert (loaded.stored, loaded.refused, loaded.refusals[0].line) == (0, 1, 3)
    assert loaded.refusals[0].reason.startswith(reason)


async def test_of_a_call_the_usable_vectors_are_stored() -> None:
    store = DictStore()
    loaded = await load(store, [call(1, ["a", "b"], [[0.1, 0.2], None])])
    assert (loaded.stored, loaded.refused) == (1, 1)
    assert loaded.refusals[0].reason == "item 1 of the request: null in place of a vector"
    loaded = await load(store, [call(1, ["a", "b"], [[0.1, 0.2], None], foo=1)])
    assert (loaded.stored, loaded.refused) == (0, 1)  # keyed by its whole body, so half of it would never be served


async def test_it_stops_where_the_store_fails() -> None:
    store = DictStore()
    store.gate = asyncio.Event()
    running = asyncio.create_task(load(store, [PaidText(1, "a", numbers(0.1))]))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert store.values == {}
