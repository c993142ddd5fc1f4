"""``embedding-proxy cache load``: what was paid for before is a hit, with the numbers that the upstream wrote."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from openai import AsyncOpenAI

from proxy.config.settings import StoreSetting
from tests.conftest import StartProxy
from tests.support import cli
from tests.support.cli import Ended
from tests.support.client import Client
from tests.support.scripted import ScriptedUpstream

Load = Callable[..., Awaitable[Ended]]
TEXTS = [f"text {n}" for n in range(12)]


@pytest.fixture
def load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], upstream: ScriptedUpstream, sqlite_path: Path
) -> Load:
    """With the options of the proxy that `start` starts."""
    monkeypatch.setenv("KEY", "sk-test")
    options = ("--upstream", upstream.base_url, "--provider", "openai", "--store", f"sqlite:///{sqlite_path}")
    return partial(cli.run_beside, monkeypatch, capsys, "cache", "load", *options, "--credential-env", "KEY")


async def start(start_proxy: StartProxy, sqlite_path: Path, **changes: Any) -> Client:
    client = await start_proxy(store=StoreSetting(path=sqlite_path), provider="openai", **changes)
    # The credential is valid once the upstream has accepted it.
    await client.embed("something else")
    return client


def write_batch(folder: Path, upstream: ScriptedUpstream, size: int = 3) -> tuple[Path, Path]:
    """The files of a job that the upstream has done."""
    sent, received = [], []
    for start in range(0, len(TEXTS), size):
        body = {"model": "m", "input": TEXTS[start : start + size], "encoding_format": "float"}
        request = {"custom_id": f"job-{start}", "method": "POST", "url": "/v1/embeddings", "body": body}
        response = {"status_code": 200, "request_id": "r", "body": upstream.answer_to(body)}
        sent.append(orjson.dumps(request))
        received.append(orjson.dumps({"custom_id": f"job-{start}", "response": response, "error": None}))
    paths = folder / "input.jsonl", folder / "output.jsonl"
    paths[0].write_bytes(b"\n".join(sent))
    paths[1].write_bytes(b"\n".join(reversed(received)))  # a job's output is in any order
    return paths


async def test_a_batch_that_was_paid_for_is_all_hits_to_the_openai_client(
    load: Load, start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, sqlite_path: Path
) -> None:
    upstream.dimensions = 1536
    sent, received = write_batch(tmp_path, upstream)
    ended = await load(str(sent), "--output", str(received))
    assert (ended.status, ended.out) == (0, "4 lines\n  stored              12  new entries\n")
    client = await start(start_proxy, sqlite_path)
    async with AsyncOpenAI(api_key="sk-test", base_url=client.proxy.base_url) as openai:
        raw = await openai.embeddings.with_raw_response.create(model="m", input=TEXTS)
        as_floats = await openai.embeddings.with_raw_response.create(model="m", input=TEXTS, encoding_format="float")
    assert (raw.headers["x-cache"], as_floats.headers["x-cache"]) == ("HIT", "HIT")
    assert len(upstream.calls) == 1
    for position, text in enumerate(TEXTS):
        written = upstream.embedding({"model": "m"}, text, 1536)
        assert as_floats.parse().data[position].embedding == written
        decoded = np.array(raw.parse().data[position].embedding, np.float32)
        assert decoded.tolist() == np.array(written, np.float32).tolist()


@pytest.mark.parametrize("form", ["text", "sdk", "base64", "npy"])
async def test_texts_with_vectors_are_hits_however_their_numbers_are_written(
    load: Load, start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, sqlite_path: Path, form: str
) -> None:
    written = [upstream.embedding({"model": "m"}, text, 16) for text in TEXTS]
    widened = np.array(written, np.float32).astype(np.float64).tolist()
    encoded = [upstream.embedding({"model": "m", "encoding_format": "base64"}, text, 16) for text in TEXTS]
    path = tmp_path / "paid"
    options: list[str] = []
    if form == "npy":
        path.write_text("\n".join(TEXTS))
        np.save(tmp_path / "vectors.npy", np.array(written, np.float32))
        options = ["--vectors", str(tmp_path / "vectors.npy")]
    else:
        vectors: list[Any] = {"text": written, "sdk": widened, "base64": encoded}[form]
        lines = [{"text": text, "embedding": vector} for text, vector in zip(TEXTS, vectors, strict=True)]
        path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    ended = await load(str(path), "--model", "m", *options)
    assert (ended.status, ended.out) == (0, "12 lines\n  stored              12  new entries\n")
    client = await start(start_proxy, sqlite_path)
    assert (await client.embed(TEXTS)).embeddings == written
    as_base64 = await client.embed(TEXTS, encoding_format="base64")
    assert (as_base64.cache, as_base64.embeddings) == ("HIT", encoded)
    assert (await client.embed([*TEXTS, "new"])).cache == "PARTIAL"
    assert (await client.embed(TEXTS, dimensions=8)).cache == "MISS"


async def test_parquet_is_read_where_pyarrow_is(load: Load, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    vectors = [upstream.embedding({"model": "m"}, text, 16) for text in TEXTS[:3]]
    table = pa.table(
        {
            "text": pa.array([*TEXTS[:3], None, "x"]),
            "embedding": pa.array([*vectors, [1.0] * 16, None], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, tmp_path / "paid.parquet")
    ended = await load(str(tmp_path / "paid.parquet"), "--model", "m")
    assert ended.status == 1
    assert ended.out == (
        "5 lines\n  stored               3  new entries\n  refused              2\n"
        "    line 4: no text\n    line 5: no vector, or null in it\n"
    )
    pq.write_table(table.rename_columns(["a", "b"]), tmp_path / "other.parquet")
    ended = await load(str(tmp_path / "other.parquet"), "--model", "m")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "its columns are a, b; accepted: a column" in ended.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b"\x7fELF\0\0", "not a text file; accepted: JSON Lines, logs and plain text in UTF-8, or gzipped"),
        (b"SQLite format 3\0", "the file is a SQLite database; export it as JSON Lines"),
    ],
)
async def test_a_file_without_texts_is_refused_before_a_store_is_made(
    load: Load, tmp_path: Path, sqlite_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "paid"
    path.write_bytes(content)
    ended = await load(str(path), "--model", "m")
    assert (ended.status, ended.out, ended.err.splitlines()[-1]) == (2, "", f"embedding-proxy: {path}: {message}")
    assert not sqlite_path.exists()


async def test_a_running_proxy_serves_what_is_loaded_and_replaced(
    load: Load, start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, sqlite_path: Path
) -> None:
    client = await start(start_proxy, sqlite_path)
    path = tmp_path / "paid.jsonl"
    path.write_bytes(orjson.dumps({"text": "a", "embedding": [0.5] * 16}))
    assert (await load(str(path), "--model", "m", "--dry-run")).out == (
        "1 line, nothing written (--dry-run)\n  stored               1  new entries\n"
    )
    assert (await load(str(path), "--model", "m")).status == 0
    assert (await client.embed("a")).vectors == [[0.5] * 16]
    path.write_bytes(orjson.dumps({"text": "a", "embedding": [0.25] * 16}))
    kept = await load(str(path), "--model", "m")
    assert kept.out == "1 line\n  kept                 1  another vector is stored, which stays without --overwrite\n"
    replaced = (await load(str(path), "--model", "m", "--overwrite", "--json")).json
    assert (replaced["replaced"], replaced["kept"], replaced["refused"]) == (1, 0, 0)
    await client.proxy.cache.feed.poll(0.0)
    assert (await client.embed("a")).vectors == [[0.25] * 16]
    assert len(upstream.calls) == 1


async def test_refused_lines_are_said_and_the_status_is_1(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "paid.jsonl"
    path.write_text('{"text": "a", "embedding": [0.5, 0.5]}\n{"text": "b", "embedding": [0.0, 0.0]}\nx\n')
    ended = await load(str(path), "--model", "m")
    assert ended.status == 1
    assert ended.out.startswith("3 lines\n  stored               1  new entries\n  refused              2\n    line 2:")
    assert [refusal["line"] for refusal in (await load(str(path), "--model", "m", "--json")).json["refusals"]] == [2, 3]


async def test_without_a_key_it_says_whose_entries_these_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, sqlite_path: Path
) -> None:
    path = tmp_path / "paid.jsonl"
    path.write_text('{"text": "a", "embedding": [0.5]}')
    command = ("cache", "load", str(path), "--model", "m", "--store", f"sqlite:///{sqlite_path}")
    ended = await cli.run_beside(monkeypatch, capsys, *command)
    assert ended.status == 0
    assert ended.err == (
        "embedding-proxy: loading for requests without an API key; if clients send one, name it (--credential-env)\n"
    )
    shared = await cli.run_beside(monkeypatch, capsys, *command, "--share", "all")
    assert (shared.err, shared.out) == ("", "1 line\n  stored               1  new entries\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{paid}"], "--model is missing: the model as clients name it; only a batch (--output) has its own"),
        (["{paid}", "--model", "m", "--output", "{paid}"], "--output: the requests of a batch have their own --model"),
        (["{paid}", "--output", "{paid}", "--vectors", "x"], "--vectors and --output; accepted: one of them"),
        (["{paid}", "--output", "{paid}"], "{paid}:1: no request; accepted: the input file of a batch"),
        (["{paid}", "--model", "m", "--vectors", "{paid}"], "{paid}: not a NumPy file; accepted: a .npy file"),
        (["/none", "--model", "m"], "/none: No such file or directory"),
        (["{paid}", "--model", "m", "--field", "x"], "--field: 'x' is not a field of the body"),
        (["{paid}", "--model", "m", "--store", "memory:"], "memory: is only the memory of a running proxy; accepted"),
        (["{paid}", "--model", "m", "--credential-env", "NONE"], "--credential-env: the environment variable NONE is"),
        (["{paid}", "--model", "m", "--upstream", "x"], "--upstream: 'x' is not an upstream"),
    ],
)
async def test_bad_input_is_one_line(load: Load, tmp_path: Path, arguments: list[str], message: str) -> None:
    path = tmp_path / "paid.jsonl"
    path.write_text('{"text": "a", "embedding": [0.5]}')
    ended = await load(*[argument.replace("{paid}", str(path)) for argument in arguments])
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("embedding-proxy: " + message.replace("{paid}", str(path)))
