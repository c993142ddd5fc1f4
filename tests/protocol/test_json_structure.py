"""The cost of JSON is counted exactly before it is parsed, in pieces of any length."""

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocol import json_structure
from proxy.protocol.json_structure import Structure

TEXT = st.text(alphabet='a"\\:,[]{}u0é\U0001f600', max_size=8)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), TEXT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def inner_values(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from inner_values(inner)


@given(JSON, st.booleans(), st.lists(st.integers(0, 200)))
def test_the_count_is_exact_in_any_pieces(value: Any, ascii_only: bool, cuts: list[int]) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    counted = Structure()
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(body)], strict=True):
        counted.feed(body[start:end])
    inner = list(inner_values(value))
    containers = [one for one in inner if isinstance(one, list | dict)]
    commas = sum(max(0, len(container) - 1) for container in containers)
    assert counted.size_bytes == len(body)
    assert counted.containers == len(containers)
    assert counted.values == len(containers) + commas
    assert counted.members == sum(len(container) for container in containers if isinstance(container, dict))


N = 20_000
SHAPES = {
    "numbers": [10_000 + n for n in range(N)],
    "fractions": [n / 7 for n in range(N)],
    "short strings": [f"{n}" for n in range(N)],
    "wide strings": ["\u20ac"] * N,
    "empty arrays": [[]] * N,
    "arrays": [[0]] * N,
    "nested arrays": [[[]]] * N,
    "empty objects": [{}] * N,
    "objects": [{"a": 0}] * N,
    "objects of arrays": [{"a": []}] * N,
    "larger objects": [dict.fromkeys("abcdef", 0)] * N,
    "one object": {f"{n}": n for n in range(N)},
    "a text": "x" * N,
    "a text with one emoji": "x" * N + "\U0001f600",
}


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_objects_take_no_more_than_was_reserved(name: str, ascii_only: bool) -> None:
    body = json.dumps(SHAPES[name], ensure_ascii=ascii_only, separators=(",", ":")).encode()
    tracemalloc.start()
    try:
        value = orjson.loads(body)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert value == SHAPES[name]
    assert taken <= json_structure.of(body).objects_bytes


def test_brackets_inside_strings_do_not_count() -> None:
    counted = json_structure.of(orjson.dumps({"model": "m", "input": ['1,2,[3],{4:5}\\"' * 100_000]}))
    assert (counted.values, counted.containers, counted.members) == (3, 2, 2)
    assert not counted.is_too_complex
    assert counted.objects_bytes < 2_000_000


@pytest.mark.parametrize("value", ["{}", "[]", "[[]]"])
def test_containers_are_counted_up_to_the_limit(value: str) -> None:
    body = f"[{','.join([value] * 1000)}]".encode()
    assert json_structure.has_more_containers(body, 1000)
    assert not json_structure.has_more_containers(body, 2001)
    assert not json_structure.has_more_containers(orjson.dumps([body.decode()] * 10), 11)


def test_counting_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    feed = Structure.feed

    def counting(self: Structure, piece: bytes) -> None:
        fed.append(len(piece))
        feed(self, piece)

    monkeypatch.setattr(Structure, "feed", counting)
    assert json_structure.has_more_containers(b"[" + b"[]," * 5_000_000, 100_000)
    assert sum(fed) < 1_000_000
