"""A line of a file as a text or a request."""

import orjson
import pytest

from proxy.analysis import formats, timestamps
from proxy.analysis.call import Call, Text, Unreadable, Unrelated
from proxy.analysis.formats import PARSERS, Format
from proxy.errors import ConfigError

BODY = {"model": "m", "input": ["a", 'it\'s "b"\n']}
LITELLM = {"call_type": "aembedding", "model": "m", "messages": BODY["input"], "startTime": 1.8e9}
SDK = (
    b"[2026-11-01 12:00:00 - openai._base_client:482 - DEBUG] Request options: {'method': 'post', 'url': '/embeddings',"
    b" 'files': None, 'post_parser': <function Embeddings.create at 0x7f>, 'json_data': "
)


def parse(line: bytes | dict[str, object], own: Format = Format.JSONL) -> Call | Text:
    return PARSERS[own](line if isinstance(line, bytes) else orjson.dumps(line))


@pytest.mark.parametrize("name", ["text", "input", "content"])
def test_a_text_of_a_corpus(name: str) -> None:
    assert parse({name: "x", "id": 1, "data": {"source": "y"}}) == Text("x")
    assert parse(b'"x"') == Text("x")
    assert parse(b"  x y ", Format.TEXT) == Text("  x y ")


def test_the_body_of_a_request_is_kept_to_the_byte() -> None:
    line = b' {"model": "m", "input": "x", "model": "n"}'
    assert parse(line) == Call({"model": "n", "input": "x"}, line.strip())


@pytest.mark.parametrize(
    ("record", "at_s", "headers", "target"),
    [
        ({"ts": 1.8e9, "request": BODY}, 1.8e9, (), "/v1/embeddings"),
        ({"body": BODY, "time": "2027-01-15T08:00:00Z"}, 1.8e9, (), "/v1/embeddings"),
        ({"body": orjson.dumps(BODY).decode(), "time": 1.8e12}, 1.8e9, (), "/v1/embeddings"),
        (
            {
                "timestamp": "2027-01-15 08:00:00",
                "request": {"url": "https://h/v1/embeddings?a=b", "headers": {"api-key": "k"}, "body": BODY},
                "response": {"body": {}},
            },
            1.8e9, (("api-key", "k"),), "/v1/embeddings?a=b",
        ),
        (
            {"request": {"headers": [{"name": "api-key", "value": "k"}], "postData": 1, "body": BODY}},
            None, (("api-key", "k"),), "/v1/embeddings",
        ),
        ({"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": BODY}, None, (), "/v1/embeddings"),
        ({"data": {"pod": "p"}, "payload": BODY}, None, (), "/v1/embeddings"),
    ],
)  # fmt: skip
def test_a_request_in_a_record_of_a_log(
    record: dict[str, object], at_s: float | None, headers: tuple[tuple[str, str], ...], target: str
) -> None:
    found = parse(record)
    assert isinstance(found, Call)
    assert (found.fields, found.at_s, found.headers, found.target) == (BODY, at_s, headers, target)


@pytest.mark.parametrize(
    "record",
    [
        LITELLM,
        {"standard_logging_object": LITELLM},
        LITELLM | {"messages": [{"role": "user", "content": BODY["input"]}]},
        LITELLM | {"messages": [], "proxy_server_request": {"body": BODY}},
        LITELLM | {"messages": [], "proxy_server_request": orjson.dumps(BODY).decode()},
        {"call_type": "embedding", "litellm_params": {"proxy_server_request": {"body": BODY}}, "startTime": 1.8e9},
    ],
)
def test_records_of_litellm(record: dict[str, object]) -> None:
    found = parse(record)
    assert isinstance(found, Call)
    assert found.fields == BODY


def test_litellm_has_the_other_fields_apart() -> None:
    record = LITELLM | {"model_group": "alias", "model_parameters": {"dimensions": 8, "metadata": {"a": 1}}}
    found = parse(record)
    assert isinstance(found, Call)
    assert found.fields == {"model": "alias", "input": BODY["input"], "dimensions": 8}


@pytest.mark.parametrize(
    ("line", "at_s"),
    [
        (SDK + repr(BODY).encode() + b", 'x': 1}", 1793534400.0),
        (b"-d '" + orjson.dumps(BODY) + b"'", None),
        (b"-d '" + repr(BODY).encode() + b"'", None),
    ],
)
def test_lines_of_text_logs(line: bytes, at_s: float | None) -> None:
    assert parse(line, Format.LOG) == Call(BODY, at_s=at_s)


def test_a_line_of_the_sdk_in_a_json_log() -> None:
    found = parse({"message": (SDK + repr(BODY).encode() + b"}").decode(), "timestamp": 1.8e9})
    assert found == Call(BODY, at_s=1.8e9)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        ({"text": ""}, "an empty text"),
        ({"txt": "x"}, 'no "text"'),
        ({"body": '{"model": "m", "inp'}, "cut off"),
        (LITELLM | {"messages": [{"role": "user", "content": "redacted-by-litellm"}]}, "redacted"),
        (LITELLM | {"messages": "a... (litellm_truncated 9 chars)"}, "truncated"),
        (LITELLM | {"messages": None}, "not logged"),
    ],
)
def test_what_can_not_be_read(line: bytes | dict[str, object], reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        parse(line)


@pytest.mark.parametrize(
    ("rest", "reason"),
    [(b"{'input': ['a", "cut off"), (b"{'input': NotGiven}}", "not JSON"), (b"{'input': {1, 2}}}", "not JSON")],
)
def test_a_logged_dictionary_that_can_not_be_read(rest: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        parse(SDK + rest, Format.LOG)


@pytest.mark.parametrize(
    "line",
    [
        {"model": "m", "messages": [{"role": "user", "content": "x"}]},
        {"call_type": "acompletion", "messages": []},
        {"url": "/v1/chat/completions", "body": {"model": "m", "messages": []}},
        {"url": "/v1/responses", "body": {"model": "m", "input": "x"}},
        {"method": "GET", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}},
        {"message": "Started server process"},
    ],
)
def test_what_is_no_embeddings_request(line: dict[str, object]) -> None:
    with pytest.raises(Unrelated):
        parse(line)


@pytest.mark.parametrize(
    ("value", "at_s"),
    [(1.8e9, 1.8e9), (1_800_000_000_500, 1_800_000_000.5), ("1800000000", 1.8e9), (5, None), ("soon", None),
     (True, None), (float("nan"), None), ("2027-01-15T10:00:00+02:00", 1.8e9)],
)  # fmt: skip
def test_times_of_logs_are_read_in_every_notation(value: object, at_s: float | None) -> None:
    assert timestamps.parse(value) == at_s


@pytest.mark.parametrize(
    ("sample", "own"),
    [
        (b'{"text": "a"}\n{"text": "b"}\n', Format.JSONL),
        (b"a b\nc d\n{x}\n", Format.TEXT),
        (b"[2026] starting\n" + SDK, Format.LOG),
        (b"", Format.TEXT),
        (b"[1] a footnote\n", Format.TEXT),
    ],
)
def test_formats_are_detected(sample: bytes, own: Format) -> None:
    assert formats.detect(sample, "f") is own


def test_a_json_array_is_no_json_lines() -> None:
    for sample in (b'[\n  {"text": "a"},\n', b'["a", "b"]'):
        with pytest.raises(ConfigError, match="jq"):
            formats.detect(sample, "f")
