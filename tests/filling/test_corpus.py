"""Corpora as users have them, and the line that is wrong."""

import gzip
from pathlib import Path

import pytest

from proxy.errors import ConfigError
from proxy.filling.batches import Distinct, batched
from proxy.filling.corpus import Text, read_texts

GZIPPED = gzip.compress(b"a\n" * 1000, mtime=0)  # without the time, which would be in the names of the tests


def written(folder: Path, content: bytes) -> Path:
    path = folder / "corpus"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"one\ntwo\r\n\n  \n three \n", [(1, "one"), (2, "two"), (5, " three ")]),
        (b'\xef\xbb\xbf{"text": "a", "id": 1}\n{"input": "b"}\n\n{"content": "c"}', [(1, "a"), (2, "b"), (4, "c")]),
        (b'say {"x"}\n[1]\n', [(1, 'say {"x"}'), (2, "[1]")]),
        (b"", []),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_lines_with_texts_are_read(
    tmp_path: Path, content: bytes, texts: list[tuple[int, str]], compress: type
) -> None:
    assert list(read_texts(written(tmp_path, compress(content)))) == [Text(*text) for text in texts]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": 1}', ':2: no text; accepted: an object with a string "text", "input" or "content"'),
        (b'{"text": "a"}\n"b"', ":2: no text; accepted"),
        (b'{"text": "a"}\n\n{"text": ""}', ":3: an empty text, which embeddings APIs refuse"),
        (b'{"text": "a"}\n{"text": "\\ud800"}', ":2: not JSON: "),
        (b'{"text": "a"}\nb', ":2: not JSON: "),
        (b"a\n\xff\n", ":2: not UTF-8"),
        (b'["a"]', ": a JSON array; accepted: JSON Lines (jq -c '.[]' makes them), or a text a line"),
        (GZIPPED[:-12], ": the gzip data ends too early"),
        (GZIPPED[:12] + b"\xff" * 50, ": the gzip data ends too early"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ": not a text file; accepted: JSON Lines, logs and plain text in UTF-8"),
        (b"PK\x03\x04\x14", ": the file is a ZIP archive; extract it"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ConfigError) as raised:
        list(read_texts(path))
    assert str(raised.value).startswith(f"{path}{message}")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing: No such file or directory"):
        list(read_texts(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="Is a directory"):
        list(read_texts(tmp_path))


def test_each_text_is_passed_once() -> None:
    distinct = Distinct()
    texts = [Text(1, "a"), Text(2, "b"), Text(3, "a"), Text(4, "c"), Text(5, "b")]
    assert [text.line for text in distinct.of(texts)] == [1, 2, 4]
    assert distinct.lines == 5


def test_batches_are_bounded() -> None:
    texts = [Text(i, letter) for i, letter in enumerate(["aa", "b", "ccccc", "d", "e", "f", "g"])]
    batches = batched(texts, max_items=3, max_chars=4)
    assert [[text.text for text in batch.texts] for batch in batches] == [
        ["aa", "b"],
        ["ccccc"],
        ["d", "e", "f"],
        ["g"],
    ]
    assert list(batched([], max_items=3, max_chars=4)) == []
