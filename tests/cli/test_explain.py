"""``embedding-proxy explain`` as a user runs it."""

import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.config.settings import StoreSetting
from tests.conftest import StartProxy
from tests.support import cli
from tests.support.cli import Ended
from tests.support.client import Client
from tests.support.scripted import ScriptedUpstream

Explain = Callable[..., Ended]
CURL = """curl http://127.0.0.1:8080/v1/embeddings -H 'Authorization: Bearer sk-test' \\
  -H 'Content-Type: application/json' -d '{"model": "m", "input": ["x", "y"]}'"""


@pytest.fixture
def explain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Explain:
    return partial(cli.run, monkeypatch, capsys, "explain")


def test_a_command_line_is_explained(explain: Explain) -> None:
    ended = explain(CURL, "--upstream", "openai")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(
        "POST /v1/embeddings to openai (openai)\n\n"
        "  keyed     item by item\n"
        "  outcome   not known: --store names the store to look in\n"
        "  merging   joins fetches of the same items, and travels in one call with requests that differ only in their"
    )
    assert (
        "  Authorization: …\n"
        "      credential, in the key: its name is that of a credential; entries belong to it\n" in ended.out
    )
    assert "  url       https://api.openai.com/v1/embeddings\n" in ended.out
    assert "sk-test" not in ended.out


async def test_it_finds_what_a_proxy_has_stored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    start_proxy: StartProxy, upstream: ScriptedUpstream, sqlite_path: Path,
) -> None:  # fmt: skip
    client = await start_proxy(store=StoreSetting(path=sqlite_path))
    await client.embed("x")
    options = ("--upstream", upstream.base_url, "--store", f"sqlite:///{sqlite_path}")
    ended = await cli.run_beside(monkeypatch, capsys, "explain", CURL, *options)
    assert "  outcome   PARTIAL: 1 of 2 distinct items are stored\n" in ended.out
    assert ": 16 x float32_shortest, model m, 1 tokens\n" in ended.out
    (explanation,) = (await cli.run_beside(monkeypatch, capsys, "explain", CURL, *options, "--json")).json
    assert [item["stored"] is not None for item in explanation["items"]] == [True, False]
    assert len(upstream.calls) == 1


def test_a_body_with_header_fields_is_explained(explain: Explain, tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text('{"model": "m", "input": "x", "stream": true}')
    ended = explain("--body", str(body), "--header", "X-Model: other", "--path", "/openai/v1/embeddings?a=b")
    assert ended.status == 0
    assert ended.out.startswith(
        "POST /openai/v1/embeddings?a=b to demo (generic)\n\n  keyed     not cached, because of"
    )
    assert "  outcome   BYPASS: a streamed response is asked for, so the request is relayed as it came\n" in ended.out
    assert "\nwhat would change it\n  let the client leave out stream\n" in ended.out


def test_standard_input_and_files_and_archives_are_read(
    explain: Explain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stdin:
        buffer = io.BytesIO(CURL.encode())

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Stdin())
    from_stdin = explain("-")
    (tmp_path / "command.sh").write_text(CURL)
    assert explain(str(tmp_path / "command.sh")) == from_stdin
    request: dict[str, Any] = {"method": "POST", "url": "http://h/v1/embeddings", "postData": {"text": "{}"}}
    (tmp_path / "a.har").write_bytes(orjson.dumps({"log": {"entries": [{"request": request}] * 2}}))
    assert explain(str(tmp_path / "a.har")).out.count("POST /v1/embeddings to demo (generic)\n") == 2


async def test_the_last_requests_of_a_running_proxy_are_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], client: Client
) -> None:
    await client.embed(["a", "b"])
    await client.embed(["a", "b", "c"], headers={"X-Request-Id": "my-id"})
    await client.embed("a", foo=1)
    await client.send("POST", "/v1/other", body=b'{"model": "m", "input": "x"}')
    for _ in range(3):
        await client.embed("a")
    command = ("explain", "--admin-url", client.proxy.admin_url, "--last")
    ended = await cli.run_beside(monkeypatch, capsys, *command, "7")
    lines = ended.out.splitlines()
    assert (ended.status, ended.err) == (0, "")
    assert "  MISS      200  0/2 cached  " in lines[0]
    assert lines[1] == "    no item was cached"
    assert lines[2].endswith(" ms  m  my-id")
    assert lines[3] == "    2 of 3 items were cached"
    assert lines[5] == (
        "    no item was cached; keyed by its whole body because of unknown-field (foo): the provider's row does not"
        " describe the field"
    )
    assert lines[6].startswith("    to change that: say what the field does: [providers.generic] neutral = ")
    assert lines[8] == "    it is not the cached route, so it was passed through"
    assert lines[10] == "    all items were cached"
    assert lines[-1] == "    all items were in memory, for a request like others before it"
    assert (await cli.run_beside(monkeypatch, capsys, *command, "1")).out.count("\n") == 2
    (last,) = (await cli.run_beside(monkeypatch, capsys, *command, "1", "--json")).json
    assert (last["request"]["outcome"], last["why"], last["advice"]) == ("hit", lines[-1].strip(), None)


def test_a_proxy_that_can_not_be_asked_is_one_line(explain: Explain) -> None:
    ended = explain("--last", "5", "--admin-url", "http://127.0.0.1:1")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert ended.err.startswith(
        "embedding-proxy: can't reach the proxy at http://127.0.0.1:1/requests.json?last=5: Conn"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/none"], "/none: No such file or directory"),
        (
            ["{file}"],
            "{file}: not JSON: unexpected character, expected a JSON value; a curl command begins with curl, and",
        ),
        (["curl http://h/v1/embeddings -F x"], "the command: curl's option -F sends no JSON body"),
        (["curl http://h/v1/embeddings -d @/none"], "/none: No such file or directory"),
        (
            ["curl http://h/v1/models -d x"],
            "POST /v1/models is passed through: it is not the cached route; accepted: PO",
        ),
        (["curl http://h/v1/embeddings -X PUT -d x"], "PUT /v1/embeddings is passed through"),
        (["curl h -d x", "--body", "{file}"], "a REQUEST and --body; accepted: one of them"),
        (["curl h -d x", "--header", "A: b"], "--header is for --body; a curl command or an archive has its own"),
        (["--body", "{file}", "--header", "x"], "--header: 'x' is not a header field; accepted: NAME:VALUE"),
        (["curl http://h/v1/embeddings -d @a\0b"], "a?b: embedded null byte"),
        (["--body", "/none"], "/none: No such file or directory"),
        ([CURL, "--last", "3"], "--last is about requests that a proxy has had; leave out the REQUEST and --body"),
        (["--last", "0"], "--last: 0 is not in the range 1<=x<=256"),
        ([CURL, "--store", "sqlite:////none/c.db"], "sqlite:////none/c.db: there is no such file"),
        ([CURL, "--upstream", "opneai"], "--upstream: 'opneai' is not an upstream; did you mean openai?"),
    ],
)
def test_bad_input_is_one_line(explain: Explain, tmp_path: Path, arguments: list[str], message: str) -> None:
    path = tmp_path / "file"
    path.write_text("hello")
    ended = explain(*[argument.replace("{file}", str(path)) for argument in arguments])
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("embedding-proxy: " + message.replace("{file}", str(path)))
