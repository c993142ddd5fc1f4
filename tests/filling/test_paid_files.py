"""Vectors that were paid for, as files have them, and the lines that have none."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from proxy.errors import ConfigError
from proxy.filling.array_file import read_array_file
from proxy.filling.batch_files import read_batch_files
from proxy.filling.paid import PaidCall, PaidText
from proxy.filling.paid_lines import parse_paid_line, read_paid_lines
from proxy.filling.parquet_file import is_parquet
from proxy.filling.results import RefusedText


@pytest.mark.parametrize(
    ("content", "paid"),
    [
        (b'{"text": "a", "embedding": [0.1, 1e-3]}', PaidText(7, "a", b"[0.1, 1e-3]")),
        (b'{"id": [1], "vector": "AAAA", "input": "a", "tokens": 3}', PaidText(7, "a", b'"AAAA"', 3)),
        (b'{"text": "a", "embedding": [1], "tokens": "3"}', PaidText(7, "a", b"[1]")),
        (b'{"text": "a", "embedding": [1], "tokens": -3}', PaidText(7, "a", b"[1]")),
    ],
)
def test_a_line_has_a_text_and_a_vector(content: bytes, paid: PaidText) -> None:
    assert parse_paid_line(7, content) == paid


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"text", "not-json; accepted: an object with"),
        (b"[1]", "not-an-object; accepted: an object with"),
        (b'{"text": "a"', "not-json; accepted"),
        (b'{"txt": "a", "embedding": [1]}', "no text; accepted"),
        (b'{"text": 1, "embedding": [1]}', "no text; accepted"),
        (b'{"text": ["a"], "embedding": [1]}', "no text; accepted"),
        (b'{"text": "", "embedding": [1]}', "an empty text, which embeddings APIs refuse"),
        (b'{"text": "a"}', "no vector; accepted"),
        (b'{"text": "a", "embedding": null}', "no vector; accepted"),
        (b'{"text": "a", "embedding": 1}', "no vector; accepted"),
        (b'{"text": "\\ud800", "embedding": [1]}', "not-json; accepted"),
    ],
)
def test_a_line_without_them_is_refused(content: bytes, reason: str) -> None:
    refused = parse_paid_line(7, content)
    assert isinstance(refused, RefusedText)
    assert (refused.line, refused.reason.startswith(reason)) == (7, True)


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "paid.jsonl"
    path.write_bytes(b'\n{"text": "a", "embedding": [1.5]}\n\nx\n')
    assert [paid.line for paid in read_paid_lines(path)] == [2, 4]


# --- the Batch API


def sent(custom_id: str, **changes: Any) -> dict[str, Any]:
    body = {"model": "m", "input": ["a"]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body} | changes


def received(custom_id: str, **changes: Any) -> dict[str, Any]:
    response = {"status_code": 200, "request_id": "r", "body": {"data": [{"embedding": [0.5]}]}}
    return {"id": "b", "custom_id": custom_id, "response": response, "error": None} | changes


def batch(folder: Path, requests: list[Any], responses: list[Any]) -> list[Any]:
    paths = folder / "input.jsonl", folder / "output.jsonl"
    for path, lines in zip(paths, (requests, responses), strict=True):
        path.write_bytes(b"\n".join(line if type(line) is bytes else orjson.dumps(line) for line in lines))
    return list(read_batch_files(*paths))


def test_a_batch_is_joined_by_its_ids_in_any_order(tmp_path: Path) -> None:
    raw = b'{"custom_id":"b","response":{"status_code":200,"body":{"data": [ {"embedding": [1.0,2e0]}] }},"error":null}'
    requests = [sent("a"), sent("b", url="/v1/other"), sent("unanswered")]
    first, second = batch(tmp_path, requests, [raw, received("a")])
    assert first == PaidCall(1, "/v1/other", b'{"model":"m","input":["a"]}', b'{"data": [ {"embedding": [1.0,2e0]}] }')
    assert (second.line, second.path, second.response) == (2, "/v1/embeddings", b'{"data":[{"embedding":[0.5]}]}')


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (received("x"), "the input file has no request with the custom_id 'x'"),
        (received("a", response=None, error={"code": "c", "message": "Expired."}), "the request failed: Expired."),
        (
            received("a", response={"status_code": 400, "body": {"error": {"message": "Too\nlong."}}}),
            "the request failed: Too long.",
        ),
        (received("a", response={"status_code": 500}), "the request failed: it has no response"),
        (b"{", "not-json; accepted: the output file of a batch"),
    ],
)
def test_a_response_that_is_none_is_refused(tmp_path: Path, response: Any, reason: str) -> None:
    (refused,) = batch(tmp_path, [sent("a")], [response])
    assert refused.line == 1
    assert refused.reason.startswith(reason)


@pytest.mark.parametrize(
    ("requests", "responses", "message"),
    [
        ([b"{"], [], "input.jsonl:1: not-json; accepted: the input file of a batch"),
        ([sent("a"), received("a")], [], "input.jsonl:2: no request; accepted: the input file of a batch"),
        ([sent("a"), sent("b"), sent("a")], [], "input.jsonl:3: the custom_id 'a' is there twice"),
        ([sent("a")], [{"text": "a"}], "output.jsonl:1: no custom_id; accepted: the output file of a batch"),
    ],
)
def test_files_that_are_not_a_batchs(tmp_path: Path, requests: list[Any], responses: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        batch(tmp_path, requests, responses)
    assert str(raised.value).startswith(f"{tmp_path}/{message}")


# --- NumPy


def matrix(folder: Path, array: Any, texts: str = "a\nb\n") -> list[Any]:
    (folder / "texts.txt").write_text(texts)
    if isinstance(array, bytes):
        (folder / "vectors.npy").write_bytes(array)
    else:
        np.save(folder / "vectors.npy", array)
    return list(read_array_file(folder / "texts.txt", folder / "vectors.npy"))


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "i1", "u1"])
def test_each_text_has_its_row(tmp_path: Path, kind: str) -> None:
    first, second = matrix(tmp_path, np.array([[1, 2], [3, 4]], kind), "a\n\nb")
    assert (first.line, first.text, first.embedding.tolist()) == (1, "a", [1, 2])
    assert (second.line, second.text, second.embedding.tolist()) == (3, "b", [3, 4])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.ones((3, 2), "f4"),
            "FOLDER/texts.txt has 2 texts and FOLDER/vectors.npy 3 rows; accepted: a row for each text",
        ),
        (np.ones(2, "f4"), "FOLDER/vectors.npy: not a matrix; accepted: a .npy file of a matrix of float32"),
        (np.ones((2, 2), "f2"), "FOLDER/vectors.npy: its type is float16, which no upstream writes; accepted"),
        (np.ones((2, 2), "c8"), "FOLDER/vectors.npy: its type is complex64, which no upstream writes"),
        (np.array([[None, 1], [2, 3]], object), "FOLDER/vectors.npy: not a NumPy file; accepted"),
        (b"", "FOLDER/vectors.npy: not a NumPy file"),
        (b"PK\x03\x04", "FOLDER/vectors.npy: not a NumPy file"),
        (b"\x93NUMPY\x01\x00", "FOLDER/vectors.npy: not a NumPy file"),
    ],
)
def test_what_is_no_matrix_of_vectors(tmp_path: Path, array: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        matrix(tmp_path, array)
    assert str(raised.value).startswith(message.replace("FOLDER", str(tmp_path)))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a")
    with pytest.raises(ConfigError, match="none: No such file or directory"):
        list(read_array_file(tmp_path / "texts.txt", tmp_path / "none"))


def test_nothing_of_a_pipe_is_read_before_its_reader_reads_it(tmp_path: Path) -> None:
    path, vectors = tmp_path / "pipe", tmp_path / "v.npy"
    os.mkfifo(path)
    np.save(vectors, np.ones((2, 3), "f4"))
    assert not is_parquet(path)
    with pytest.raises(ConfigError, match="it can't be read twice"):
        next(iter(read_array_file(path, vectors)))
