"""``embedding-proxy warm`` against a running proxy, as a user runs it."""

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support import cli
from tests.support.cli import Ended
from tests.support.client import Client
from tests.support.scripted import Call, ScriptedUpstream

Warm = Callable[..., Awaitable[Ended]]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"text {n % 8}\n" for n in range(12)))
    return path


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], client: Client, corpus: Path) -> Warm:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    command = partial(cli.run_beside, monkeypatch, capsys, "warm")
    return partial(command, str(corpus), "--base-url", client.proxy.base_url, "--model", "m")


async def test_a_corpus_is_cached_and_costs_nothing_the_second_time(
    warm: Warm, client: Client, upstream: ScriptedUpstream
) -> None:
    first = await warm("--batch", "3", "--json")
    assert (first.status, first.err) == (0, "")
    assert first.json == {
        "model": "m", "lines": 12, "distinct": 8, "requests": 3, "sent": 8, "hits": 0, "misses": 8,
        "billed_tokens": 48, "cost": None, "refused": 0, "refusals": [], "stopped": None,
    }  # fmt: skip
    assert {call.headers["Authorization"] for call in upstream.calls} == {"Bearer sk-test"}
    assert (await client.embed([f"text {n}" for n in range(8)])).cache == "HIT"
    again = await warm()
    assert again.out == (
        "12 lines with 8 distinct texts, 1 request\n"
        "  sent                   8\n"
        "  hits                   8\n"
        "  misses                 0\n"
        "  tokens                 0  billed\n"
        "  cost        no price: --config names a file whose [prices] have one for this model\n"
    )
    assert upstream.items.total() == 8


async def test_a_dry_run_says_what_the_rest_would_cost(warm: Warm, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    assert (await warm("--limit", "5")).status == 0
    prices = tmp_path / "proxy.toml"
    prices.write_text("[prices]\nm = 1000000\n")
    sent = len(upstream.calls)
    dry = await warm("--dry-run", "--config", str(prices))
    assert (dry.status, dry.out) == (
        0,
        "12 lines with 8 distinct texts\n"
        "  cached                 5\n"
        "  to pay for             3\n"
        "  tokens                 6  estimated\n"
        "  cost              6.0000  estimated\n",
    )
    assert (await warm("--dry-run", "--json", "--dimensions", "4")).json == {
        "model": "m", "lines": 12, "distinct": 8, "cached": 0, "to_pay_for": 8, "estimated_tokens": 16,
        "estimated_cost": None,
    }  # fmt: skip
    assert len(upstream.calls) == sent


async def test_what_clients_send_is_sent(warm: Warm, client: Client, upstream: ScriptedUpstream) -> None:
    options = (
        "--field",
        "input_type=passage",
        "--field",
        "truncate=true",
        "--dimensions",
        "8",
        "--header",
        "X-Route: eu",
    )
    assert (await warm(*options)).status == 0
    fields: dict[str, Any] = {"input_type": "passage", "truncate": True, "dimensions": 8}
    assert (await client.embed("text 1", headers={"X-Route": "eu"}, **fields)).cache == "HIT"
    assert (await client.embed("text 1", headers={"X-Route": "eu"}, dimensions=8)).cache == "MISS"


async def test_a_refused_text_is_named_and_the_others_are_cached(warm: Warm, upstream: ScriptedUpstream) -> None:
    def reply(call: Call) -> web.Response:
        return (
            web.json_response({"error": {"message": "bad"}}, status=400)
            if "text 3" in call.items
            else upstream.embed(call)
        )

    upstream.reply = reply
    ended = await warm()
    assert ended.status == 1
    assert "  sent                   7\n" in ended.out
    assert ended.out.endswith("  refused                1\n    line 4: 400 bad\n")


async def test_it_says_why_it_stopped(warm: Warm, upstream: ScriptedUpstream) -> None:
    upstream.reply = lambda _: web.json_response({"error": {"message": "Who are you?"}}, status=401)
    ended = await warm()
    assert ended.status == 1
    assert ended.out.endswith("stopped with 8 texts left; run the same command again to continue: 401 Who are you?\n")


async def test_a_dry_run_with_a_key_that_is_new_to_the_proxy_is_one_line(
    warm: Warm, upstream: ScriptedUpstream
) -> None:
    stranger = await warm("--dry-run")
    assert (stranger.status, stranger.out, stranger.err.count("\n")) == (1, "", 1)
    assert stranger.err.startswith(
        "embedding-proxy: the proxy says what is cached only to an API key that the upstream"
    )
    assert upstream.calls == []


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("", [], "FILE: no texts"),
        ('{"text": "a"}\n{"txt": "b"}', [], 'FILE:2: no text; accepted: an object with a string "text"'),
        (
            "a",
            ["--credential-env", "NOT_SET"],
            "--credential-env: the environment variable NOT_SET is not set, or empty",
        ),
        ("a", ["--field", "x=\udcff"], "--field: 'x=\\udcff' is not a field of the body; accepted: NAME=JSON"),
        ("a", ["--model", "\udcff"], "--model: '\\udcff' is not UTF-8; accepted: the model as clients name it"),
        ("a", ["--field", "x"], "--field: 'x' is not a field of the body; accepted: NAME=JSON, as dimensions=256"),
        ("a", ["--field", "model=x"], "--field: 'model=x' is not a field of the body"),
        ("a", ["--header", "X"], "--header: 'X' is not a header field; accepted: NAME:VALUE"),
        ("a", ["--header", "X: a\r\nY: b"], "--header: 'X' is not a header field; accepted: NAME:VALUE"),
        ("a", ["--batch", "0"], "--batch: 0 is not in the range x>=1"),
        ("a", ["--base-url", "localhost"], "--base-url: not a URL; accepted: as http://127.0.0.1:8080/v1"),
        ("a", ["--modle", "m"], "No such option '--modle'"),
    ],
)
def test_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    content: str, arguments: list[str], message: str,
) -> None:  # fmt: skip
    path = tmp_path / "corpus"
    path.write_text(content)
    ended = cli.run(monkeypatch, capsys, "warm", str(path), "--model", "m", *arguments)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("embedding-proxy: " + message.replace("FILE", str(path)))


def test_a_file_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = cli.run(monkeypatch, capsys, "warm", "/none", "--model", "m")
    assert ended == Ended(2, "", "embedding-proxy: /none: No such file or directory\n")


def test_a_corpus_from_a_pipe_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    ended = cli.run(monkeypatch, capsys, "warm", str(path), "--model", "m")
    message = f"embedding-proxy: {path}: it can't be read twice, as a pipe; accepted: the name of a file\n"
    assert (ended.status, ended.err) == (2, message)
