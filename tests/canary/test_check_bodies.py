"""What the canary asks: the same texts for every model, in the form that its provider takes."""

import orjson
import pytest

from proxy.canary.check_bodies import TEXTS, CheckBodies, tokens_a_month
from proxy.protocol.provider import InputFormat
from proxy.protocol.providers import PROVIDERS

HOUR_S = 3600.0


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_gets_every_text_alone(name: str) -> None:
    provider = PROVIDERS[name]
    check = CheckBodies(provider, "model")
    bodies = [orjson.loads(body) for body in check.alone]
    given = [body.pop("input") for body in bodies]
    assert given == [text if InputFormat.TEXT in provider.inputs else [text] for text in TEXTS]
    assert all(body == {"model": "model", **provider.required_fields} for body in bodies)
    if check.batch is not None:
        assert orjson.loads(check.batch) == {"model": "model", **provider.required_fields, "input": list(TEXTS)}


def test_a_model_that_makes_one_vector_of_a_list_gets_no_batch() -> None:
    assert CheckBodies(PROVIDERS["gemini"], "gemini-embedding-2").batch is None
    assert CheckBodies(PROVIDERS["gemini"], "text-embedding-004").batch is not None
    assert CheckBodies(PROVIDERS["openai"], "m").batch is not None


def test_without_a_model_the_url_names_it() -> None:
    assert all("model" not in orjson.loads(body) for body in CheckBodies(PROVIDERS["generic"], None).alone)


def test_what_a_month_of_checks_costs() -> None:
    often, seldom = tokens_a_month(HOUR_S), tokens_a_month(6 * HOUR_S)
    assert abs(often - 6 * seldom) <= 6
    assert 30 * 24 * 2 * sum(map(len, TEXTS)) / 8 < often < 30 * 24 * 2 * sum(len(text.encode()) for text in TEXTS)
