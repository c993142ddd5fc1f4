"""The commands `cache …` as a user runs them: what they print, and what they refuse in one line."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from proxy.cache.sqlite.store import SQLiteStore
from proxy.protocol import records
from proxy.protocol.records import RecordKey
from tests.cache.test_store import scanned
from tests.support.cli import Ended, run
from tests.support.dict_store import key_of, record
from tests.support.redis_server import RedisServer

Cache = Callable[..., Ended]
SECRET = "0123456789abcdef0123456789abcdef"
HOUR_S = 3600
SCOPE = b"a scope."


def put(path: Path, values: Mapping[bytes, bytes]) -> None:
    async def store_them() -> None:
        store = SQLiteStore(path, limit_bytes=64 * 1024**2)
        await store.put_many(values, ttl_s=None, overwrite=True)
        await store.aclose()

    asyncio.run(store_them())


def stored(path: Path) -> dict[bytes, bytes]:
    async def read() -> dict[bytes, bytes]:
        store = SQLiteStore(path, limit_bytes=64 * 1024**2)
        try:
            return await scanned(store)
        finally:
            await store.aclose()

    return asyncio.run(read())


def entries(now_s: float, record_key: RecordKey | None = None) -> dict[bytes, bytes]:
    """Ten of one model, a minute old, and five of another, two days old."""
    made = {}
    for number in range(15):
        is_old = number >= 10
        its = record(
            float(number), at=now_s - (48 * HOUR_S if is_old else 60), model="old-model" if is_old else "text\x1b-model"
        )
        made[key_of(number)] = records.encode(key_of(number), its, record_key)
    return made


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    return 2_000_000_000.0


@pytest.fixture
def cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sqlite_path: Path, now_s: float
) -> Cache:
    """Runs a command on a store with `entries`."""
    put(sqlite_path, entries(now_s))
    monkeypatch.setenv("EMBEDDING_PROXY_STORE", f"sqlite:///{sqlite_path}")
    return lambda *arguments: run(monkeypatch, capsys, "cache", *map(str, arguments))


def test_info_counts_by_model_and_age(cache: Cache, sqlite_path: Path) -> None:
    put(sqlite_path, {key_of(99): b"damaged"})
    status, out, err = cache("info")
    assert (status, err) == (0, "")
    head, _, title, first, second, *rest = out.splitlines()
    assert head == f"sqlite:///{sqlite_path}: 16 entries, 1.6 KiB"
    assert title.split() == ["model", "dimensions", "type", "entries", "size", "tokens", "oldest", "newest"]
    assert first.split()[:4] == ["text?-model", "2", "float32", "10"]  # no control characters
    assert second.split()[-2:] == ["2033-05-16", "2033-05-16"]
    assert [line.split() for line in rest[2:4]] == [["up", "to", "1", "hour", "10"], ["up", "to", "1", "week", "5"]]
    assert rest[-1] == "1 are invalid (checksum: 1); see cache verify."
    found = cache("info", "--json").json
    assert (found["entries"], found["invalid"], found["ages"]["1 week"]) == (16, {"checksum": 1}, 5)
    assert found["models"][0] | {"bytes": 0} == {
        "model": "text\x1b-model", "dimensions": 2, "dtype": "float32", "entries": 10, "bytes": 0,
        "tokens": 10, "oldest_s": 1_999_999_940, "newest_s": 1_999_999_940,
    }  # fmt: skip


def test_verify_names_what_is_invalid(cache: Cache, sqlite_path: Path) -> None:
    assert cache("verify") == (0, f"sqlite:///{sqlite_path}: 15 valid records, 0 invalid\n", "")
    put(sqlite_path, {key_of(99): b"damaged", key_of(98): entries(0.0)[key_of(1)]})
    status, out, _ = cache("verify")
    assert status == 1
    assert out.splitlines() == [
        f"sqlite:///{sqlite_path}: 15 valid records, 2 invalid",
        "  checksum: 1",
        f"    {key_of(99).hex()}",
        "  key: 1",
        f"    {key_of(98).hex()}",
        "The proxy treats them as misses, and replaces them.",
    ]
    found = cache("verify", "--json").json
    assert (found["valid"], found["invalid"]["key"]) == (15, {"count": 1, "keys": [key_of(98).hex()]})


def test_verify_checks_tags_with_the_record_key_alone(
    cache: Cache, sqlite_path: Path, now_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(sqlite_path, entries(now_s, RecordKey(SECRET.encode())))
    assert "15 have a tag, which only --record-key-env could verify." in cache("verify").out
    monkeypatch.setenv("RECORD_KEY", SECRET)
    assert cache("verify", "--record-key-env", "RECORD_KEY").out.endswith(": 15 valid records, 0 invalid\n")
    monkeypatch.setenv("RECORD_KEY", SECRET[::-1])
    other = cache("verify", "--record-key-env", "RECORD_KEY", "--json")
    assert (other.status, other.json["invalid"]["other-key"]["count"]) == (1, 15)


def test_entries_go_into_a_file_and_into_another_store(cache: Cache, sqlite_path: Path, tmp_path: Path) -> None:
    file, other, third = tmp_path / "file", tmp_path / "other", tmp_path / "third"
    exported = cache("export", file)
    assert exported.out.startswith(f"{file}: 15 entries of sqlite:///{sqlite_path}, ")
    assert not other.exists()
    dry = cache("import", file, "--store", f"sqlite:///{other}", "--dry-run")
    assert dry == (0, f"sqlite:///{other}: 15 entries would be stored\n", "")
    assert not other.exists()
    assert cache("import", file, "--store", f"sqlite:///{other}") == (0, f"sqlite:///{other}: 15 entries stored\n", "")
    again = cache("import", file, "--store", f"sqlite:///{other}", "--json").json
    assert (again["stored"], again["existing"], again["is_complete"], again["damaged"]) == (0, 15, True, [])
    replaced = cache("import", file, "--store", f"sqlite:///{other}", "--overwrite", "--json").json
    assert (replaced["stored"], replaced["existing"]) == (15, 0)
    copied = cache("copy", f"sqlite:///{sqlite_path}", f"sqlite:///{third}", "--ttl", "1d")
    assert copied.out == f"sqlite:///{third}: 10 entries stored\n  5 are older than --ttl\n"
    assert stored(other) == stored(sqlite_path)
    assert stored(third).items() < stored(sqlite_path).items()


def test_a_damaged_file_is_named_and_the_exit_status_says_so(cache: Cache, tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    cache("export", file)
    data = file.read_bytes()
    file.write_bytes(data[:-5])
    cut = cache("import", file, "--store", f"sqlite:///{other}")
    assert cut.status == 1
    assert cut.out.endswith(f"damaged; the entries there are lost\n  {file}: its end is missing; it was cut off\n")
    assert len(stored(other)) == 15


@pytest.mark.parametrize(
    ("arguments", "gone", "shown"),
    [
        (("--all",), range(15), "15 entries removed"),
        (("--model", "old-*"), range(10, 15), "5 entries removed"),
        (("--older-than", "1d"), range(10, 15), "5 entries removed"),
        (("--model", "text*", "--older-than", "1d"), (), "0 entries removed"),
        (("--all", "--dry-run"), (), "15 entries would be removed"),
    ],
)
def test_purge_removes_what_is_selected(
    cache: Cache, sqlite_path: Path, arguments: tuple[str, ...], gone: range, shown: str
) -> None:
    before = stored(sqlite_path)
    status, out, err = cache("purge", *arguments)
    assert (status, err) == (0, "")
    assert shown in out.splitlines()[0]
    assert stored(sqlite_path) == {key: value for key, value in before.items() if key not in map(key_of, gone)}


def test_a_scope_is_counted_and_removed_and_entries_of_earlier_versions_stay(cache: Cache, sqlite_path: Path) -> None:
    scoped = {key_of(n): records.encode(key_of(n), record(scope=SCOPE)) for n in (50, 51)}
    before = stored(sqlite_path)
    put(sqlite_path, scoped)
    lines = cache("info", "--by-scope").out.splitlines()
    at = lines.index(next(line for line in lines if line.startswith("scope")))
    assert lines[at + 1].split()[:5] == ["(of", "an", "earlier", "version)", "15"]
    assert lines[at + 2].split()[:2] == [SCOPE.hex(), "2"]
    assert [found["scope"] for found in cache("info", "--json").json["scopes"]] == [None, SCOPE.hex()]
    kept = "left: 15 entries of an earlier version, whose scope is not known"
    dry = cache("purge", "--scope", SCOPE.hex(), "--dry-run")
    assert [line.split(",")[0] for line in dry.out.splitlines()[:1]] == [
        f"sqlite:///{sqlite_path}: 2 entries would be removed"
    ]
    assert dry.out.splitlines()[-1] == kept
    done = cache("purge", "--scope", SCOPE.hex(), "--json").json
    assert (done["entries"], done["models"], done["unknown_scope"]) == (2, {"m": 2}, 15)
    assert stored(sqlite_path) == before


ERRORS = [
    (["purge"], "say which entries to remove: --model, --older-than, --scope, --credential-env, --text or --all"),
    (["purge", "--all", "--model", "m"], "--all can't be combined with other conditions"),
    (["purge", "--text", "FILE"], "--text needs --model, the model that the requests name"),
    (["purge", "--text", "FILE", "--older-than", "1d", "--model", "m"], "--text can't be combined with --older-than"),
    (["purge", "--text", "FILE", "--model", "m"], "FILE: No such file or directory"),
    (["purge", "--older-than", "soon"], "--older-than: 'soon' is not a duration; accepted: a number with"),
    (["purge", "--scope", "x"], "--scope: 'x' is not a scope; accepted: 16 hexadecimal digits, as of cache info"),
    (["purge", "--scope", SCOPE.hex()[1:]], "is not a scope; accepted: 16 hexadecimal digits"),
    (["purge", "--scope", SCOPE.hex(), "--all"], "--all can't be combined with other conditions"),
    (["purge", "--credential-env", "X", "--all"], "--all can't be combined with other conditions"),
    (["purge", "--scope", SCOPE.hex(), "--credential-env", "X"], "--scope and --credential-env name two scopes"),
    (["purge", "--scope", SCOPE.hex(), "--text", "FILE"], "--text can't be combined with --scope"),
    (["purge", "--credential-env", "NO_SUCH"], "--credential-env: the environment variable NO_SUCH is not set"),
    (["purge", "--credential-env", "HOME", "--share", "all"], "all clients share the entries (--share all, or"),
    (["import", "FILE"], "FILE: No such file or directory"),
    (["import", "OTHER"], "OTHER: it is not an export of embedding-proxy cache export"),
    (["import"], "file is missing: set it; see --help"),
    (["export", "OTHER"], "OTHER: it exists already; delete it, or choose another name"),
    (["export", "/nonexistent/file"], "/nonexistent/file.part: No such file or directory"),
    (["export", "x" * 300], f"{'x' * 300}: File name too long"),
    (["import", "x" * 300], f"{'x' * 300}: File name too long"),
    (["copy", "sqlite:////none", "sqlite:////other"], "sqlite:////none: there is no such file"),
    (["copy", "sqlite:////none", "sqlite:////none"], "sqlite:////none and sqlite:////none are the same store"),
    (["copy", "memory:", "sqlite:////other"], "memory: is only the memory of a running proxy; accepted: sqlite"),
    (["copy", "mysql://x", "sqlite:////other"], "'mysql://x' is not a store; accepted: memory:, sqlite:"),
    (["info", "--store", "sqlite:////none"], "sqlite:////none: there is no such file"),
    (["info", "extra"], "Got unexpected extra argument (extra)"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[" ".join(arguments) for arguments, _ in ERRORS])
def test_bad_input_is_one_line_and_nothing_is_lost(
    cache: Cache, sqlite_path: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    names = {"FILE": str(tmp_path / "file"), "OTHER": str(other)}
    before = stored(sqlite_path)
    status, out, err = cache(*(names.get(argument, argument) for argument in arguments))
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    for name, path in names.items():
        message = message.replace(f"{name}:", f"{path}:")
    assert message in err
    assert stored(sqlite_path) == before
    assert other.read_bytes() == b"something else"


@pytest.mark.parametrize("command", [["info"], ["verify"], ["import", "EXPORT"], ["purge", "--all"]])
def test_a_file_that_is_no_store_is_left_as_it_is(
    cache: Cache, sqlite_path: Path, tmp_path: Path, command: list[str]
) -> None:
    export, other = tmp_path / "export", tmp_path / "corpus.jsonl"
    assert cache("export", str(export)).status == 0
    other.write_bytes(b'{"text": "the only copy"}')
    before = sorted(tmp_path.iterdir())
    arguments = [str(export) if argument == "EXPORT" else argument for argument in command]
    status, out, err = cache(*arguments, "--store", f"sqlite:///{other}")
    assert (status, out) == (1, "")
    assert err == f"embedding-proxy: {other}: a file of text and no store; left unchanged\n"
    assert other.read_bytes() == b'{"text": "the only copy"}'
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("file_format", ["entries", "parquet"])
def test_an_export_does_not_replace_the_part_of_something_else(cache: Cache, tmp_path: Path, file_format: str) -> None:
    part = tmp_path / "notes.part"
    part.write_bytes(b"a download that is under way")
    status, out, err = cache("export", str(tmp_path / "notes"), "--format", file_format)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{part}: something else than an interrupted export; delete it, or choose another name" in err
    assert part.read_bytes() == b"a download that is under way"


def test_a_store_is_not_copied_onto_itself_by_another_name(cache: Cache, sqlite_path: Path, tmp_path: Path) -> None:
    link, hard = tmp_path / "link", tmp_path / "hard"
    link.symlink_to(sqlite_path)
    hard.hardlink_to(sqlite_path)
    before = stored(sqlite_path)
    for other in (link, hard, f"{tmp_path}/../{tmp_path.name}/{sqlite_path.name}"):
        status, out, err = cache("copy", f"sqlite:///{sqlite_path}", f"sqlite:///{other}", "--overwrite")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "are the same store" in err
    assert stored(sqlite_path) == before


def test_a_redis_is_not_copied_onto_itself_by_another_url(cache: Cache, redis_server: RedisServer) -> None:
    redis_server.command("FLUSHALL")
    other = f"redis://localhost:{redis_server.port}"
    first = f"redis://127.0.0.1:{redis_server.port}/0"
    status, out, err = cache("copy", first, other)
    assert (status, out) == (2, "")
    assert err == f"embedding-proxy: {first} and {other} are the same store\n"
    assert cache("copy", first, f"{other}/1").status == 0
