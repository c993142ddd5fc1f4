"""The command ``embedding-proxy analyze``."""

import gzip
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import orjson
import pytest

from proxy.cli import commands

CORPUS = b'{"text": "one"}\n{"text": "two"}\n{"text": "one"}\n'


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        """(exit status, stdout, stderr)"""
        monkeypatch.setattr(sys, "argv", ["embedding-proxy", "analyze", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        shown = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, shown.out, shown.err

    return run


def test_a_report_as_text_json_and_html(run: Run, tmp_path: Path) -> None:
    corpus, config, page = tmp_path / "c.jsonl.gz", tmp_path / "proxy.toml", tmp_path / "r.html"
    corpus.write_bytes(gzip.compress(CORPUS + b'{"txt": 1}\n{"text": "<b>\\u001b[2J"}\n'))
    config.write_text('[prices]\n"text-embedding-3-*" = 1000000\n[[upstream]]\nprovider="openai"\nkey_env="NOT_SET"\n')
    status, text, _ = run(corpus, corpus, "--config", config, "--html", page, "--batch", 2)
    assert status == 0
    assert "62.5 % of 8 items repeat an earlier one: a cache saves up to 6.00 of 10.00 (estimated by bytes)." in text
    assert "Lines that could not be read" in text
    status, json, _ = run(corpus, corpus, "--config", config, "--json", "--batch", 2)
    report = orjson.loads(json)
    assert status == 0
    reason = 'no "text", "input" or "content", and no request'
    assert report["unread"] == 2 * [{"file": str(corpus), "reason": reason, "lines": 1, "first_line": 4}]
    assert (report["repetition"]["items"], report["repetition"]["distinct"]) == (8, 3)
    assert report["money"] == {"without_cache": 10.0, "at_best": 4.0, "models_without_price": []}
    assert {own["hit_rate"] for own in report["scenarios"]} == {0.625}
    _check_page(page.read_text())


def _check_page(html: str) -> None:
    class Page(HTMLParser):
        tags: set[str] = set()  # noqa: RUF012
        attributes: set[str] = set()  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.add(tag)
            self.attributes |= {name for name, _ in attrs}

    page = Page()
    page.feed(html)
    assert {"svg", "polyline", "table"} <= page.tags
    # Nothing is loaded from elsewhere, and nothing runs.
    assert not {"script", "link", "img", "iframe", "b"} & page.tags
    assert not {"src", "href", "onload"} & page.attributes
    assert "url(" not in html
    assert "prefers-color-scheme:dark" in html


def test_sizes_of_the_configuration_file_apply(run: Run, tmp_path: Path) -> None:
    corpus, config = tmp_path / "c.jsonl", tmp_path / "proxy.toml"
    corpus.write_bytes(CORPUS)
    config.write_text('memory = "1GiB"\nstore_limit = "20GiB"\n')
    [scenario] = orjson.loads(run(corpus, "--config", config, "--json")[1])["scenarios"]
    assert (scenario["memory_bytes"], scenario["store_bytes"]) == (1024**3, 20 * 1024**3)


def test_the_terminal_does_not_obey_names(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(orjson.dumps({"model": "\x1b[2Jm", "input": "x"}))
    assert "\x1b" not in run(log)[1]


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, (), "No such file or directory"),
        (b"", (), "no lines"),
        (b'{"txt": "x"}\n{"txt": "y"}\n', (), "line 1: no \"text\""),
        (b'{"model": "m", "messages": []}\n{}\n', (), "no text and no embeddings request; line"),
        (b'[\n{"text": "x"}\n]', (), "jq -c"),
        (b"\x28\xb5\x2f\xfd", (), "zstd"),
        (CORPUS, ("--memory", "lots"), "--memory: 'lots' is not a size"),
        (CORPUS, ("--store-limit", "none,1B"), "--store-limit: '1B' is too small"),
        (CORPUS, ("--batch", "0"), "--batch: 0 is not in the range"),
        (CORPUS, ("--provider", "opena"), "'opena' is not a provider"),
        (CORPUS, ("--html", "/none/r.html"), "--html /none/r.html: No such file or directory"),
        (CORPUS, ("--format", "csv"), "--format: 'csv' is not one of"),
        (CORPUS, ("--config", "/none.toml"), "No such file or directory"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    run: Run, tmp_path: Path, content: bytes | None, arguments: tuple[str, ...], message: str
) -> None:
    corpus = tmp_path / "corpus"
    if content is not None:
        corpus.write_bytes(content)
    status, out, err = run(corpus, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_folder_and_an_empty_size_are_one_line(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path)[0] == 2
    corpus = tmp_path / "c"
    corpus.write_bytes(CORPUS)
    assert run(corpus, "--memory", "")[0] == 2


def test_the_page_does_not_replace_a_file_that_is_read(run: Run, tmp_path: Path) -> None:
    corpus = tmp_path / "c"
    corpus.write_bytes(CORPUS)
    status, out, err = run(corpus, "--html", corpus)
    assert (status, out) == (2, "")
    assert err == f"embedding-proxy: --html {corpus}: it is one of the files to read; choose another name\n"
    assert corpus.read_bytes() == CORPUS
