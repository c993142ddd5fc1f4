"""The keys of the proxy's own clients: created, listed, revoked, and reloaded while it runs."""

import asyncio
import re
import signal
import stat
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from aiohttp import ClientSession

from proxy.access import client_keys
from proxy.access.client_keys import ClientKeys
from proxy.cli import commands
from proxy.errors import ConfigError
from tests.support.process import Process
from tests.support.scripted import ScriptedUpstream


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clients"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["embedding-proxy", "keys", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


# --- the command


def test_a_key_is_printed_once_and_only_its_hash_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path
) -> None:
    monkeypatch.setenv("EMBEDDING_PROXY_CLIENT_KEYS", str(path))
    assert run(monkeypatch, "add", "app-1") == 0
    out, err = capsys.readouterr()
    key = out.strip()
    assert re.fullmatch(r"ep-[\w-]{43}", key)
    assert out == key + "\n"  # so that it can be piped
    assert key not in err
    digest = sha256(key.encode()).hexdigest()
    assert re.fullmatch(rf"app-1 sha256:{digest} \d{{4}}-\d\d-\d\d\n", path.read_text())
    assert run(monkeypatch, "list") == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d  app-1\n", out)
    assert key[3:] not in out + err
    assert digest not in out + err


def test_a_new_file_is_private_and_an_existing_one_keeps_its_mode(path: Path) -> None:
    client_keys.add(path, "app")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)  # for a proxy that runs as another user of the group
    client_keys.add(path, "other")
    client_keys.revoke(path, "app")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_symlink_and_comments_are_preserved(path: Path) -> None:
    real = path.with_name("real")
    path.symlink_to(real)
    client_keys.add(path, "a")
    real.write_text("# made by hand\n" + real.read_text())
    client_keys.add(path, "b")
    client_keys.revoke(path, "a")
    assert path.is_symlink()
    assert real.read_text().startswith("# made by hand\nb sha256:")


def test_a_revoked_key_is_invalid_and_the_others_stay_valid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path
) -> None:
    made = {name: client_keys.add(path, name) for name in ("a", "b", "c")}
    assert len(set(made.values())) == 3
    assert run(monkeypatch, "revoke", "b", "--client-keys", path) == 0
    assert "removed b from" in capsys.readouterr().err
    keys = ClientKeys(path)
    assert [keys.knows(made[name]) for name in made] == [True, False, True]
    assert [key.name for key in client_keys.read(path)] == ["a", "c"]
    client_keys.add(path, "b")  # under the same name, another key
    assert not ClientKeys(path).knows(made["b"])


LINE = f"app sha256:{'0' * 64} 2026-01-01"


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        (("add", "app"), LINE, "client keys FILE: a key named app exists; revoke it first or choose another name"),
        (("revoke", "b"), LINE, "client keys FILE: there is no key named b; accepted: app"),
        (("revoke", "b"), "", "client keys FILE: there is no key named b; accepted: none, the file is empty"),
        *[
            (("add", name), "", f"{name!r} is not a valid name; accepted: letters, digits and any of . _ @ -, up to 64")
            for name in ("", " ", "a b", "-a\n", "a\n", "a:b", "../a", "#a", "a" * 65, "a\0", "ä")
        ],
        (("list",), None, "client keys FILE: No such file or directory"),
        (("revoke", "a"), None, "client keys FILE: No such file or directory"),
        (("list",), b"\xff", "client keys FILE: not UTF-8"),
        *[
            (command, f"# clients\n\n{LINE}\n{bad}\n", "client keys FILE, line 4: accepted: NAME sha256:HEX YYYY-MM-DD")
            for bad in (
                "c4nary",
                LINE.removesuffix("-01"),
                LINE.replace("0" * 64, "0" * 63),
                LINE.replace("sha256", "md5"),
                LINE + " more",
                "two " + LINE,
            )
            for command in (("list",), ("add", "b"), ("revoke", "app"))
        ],
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path, arguments: tuple[str, ...],
    content: str | bytes | None, message: str,
) -> None:  # fmt: skip
    before = content.encode() if isinstance(content, str) else content
    if before is not None:
        path.write_bytes(before)
    command, *names = arguments
    assert run(monkeypatch, command, "--client-keys", path, "--", *names) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err == f"embedding-proxy: {message.replace('FILE', str(path))}\n"
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_read_only_folder_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "add", "app", "--client-keys", "/proc/clients") == 2
    out, err = capsys.readouterr()
    assert not out  # no key is printed that was not stored
    assert err.startswith("embedding-proxy: client keys /proc/clients: ")


def test_the_file_is_replaced_atomically(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    key = client_keys.add(path, "app")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("proxy.access.client_keys.os.fsync", full)
        with pytest.raises(ConfigError, match="No space left on device"):
            client_keys.add(path, "other")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
    with path.open("rb") as reading:  # as a running proxy may
        client_keys.add(path, "other")
        assert reading.read() == before
    assert ClientKeys(path).knows(key)


def test_only_the_exact_key_is_known(path: Path) -> None:
    key = client_keys.add(path, "app")
    keys = ClientKeys(path)
    assert keys.knows(key)
    for other in ("", key[:-1], key + "x", key.upper(), "\udcff", f"sha256:{sha256(key.encode()).hexdigest()}"):
        assert not keys.knows(other)


# --- a running proxy


async def test_a_running_proxy_reloads_the_keys_on_a_signal(
    upstream: ScriptedUpstream, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-owned")
    first = client_keys.add(path, "first")
    arguments = ("--upstream", upstream.base_url, "--upstream-key-env", "UPSTREAM_KEY", "--client-keys", str(path))
    process = await asyncio.to_thread(Process, tmp_path, 0, *arguments, "--store", "memory:")
    assert process.readline() == "\n"  # the end of the banner

    said: list[str] = []

    async def reload() -> None:
        """What it says of the keys is the last line; lines of the requests before, which it writes late, come first."""
        process.popen.send_signal(signal.SIGHUP)
        said.append(await asyncio.to_thread(process.readline))
        while "client keys" not in said[-1]:
            assert said[-1], "it has ended"
            said.append(await asyncio.to_thread(process.readline))

    async with ClientSession() as session:

        async def ask(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            url = process.base_url + "/embeddings"
            async with session.post(url, json={"model": "m", "input": "x"}, headers=headers) as answer:
                return answer.status

        await reload()
        assert said[-1].endswith("client keys: reloaded 1\n")
        second = client_keys.add(path, "second")
        assert [await ask(key) for key in (first, second)] == [200, 401]
        await reload()
        assert said[-1].endswith("client keys: reloaded 2\n")
        assert [await ask(key) for key in (first, second)] == [200, 200]
        good = path.read_text()
        for broken in (f"{good}c4nary\n", None):
            path.unlink()
            if broken is not None:
                path.write_text(broken)
            await reload()
            assert re.search(rf" ERROR +client keys {path}(, line 3: |: No such file)", said[-1])
            assert said[-1].endswith("; keeping the previous keys\n")
            assert [await ask(key) for key in (first, second, "c4nary")] == [200, 200, 401]
            assert await has_failed(session, process) is True
        path.write_text(good)
        client_keys.revoke(path, "first")
        await reload()
        assert said[-1].endswith("client keys: reloaded 1\n")
        assert await has_failed(session, process) is False
        assert [await ask(key) for key in (first, second)] == [401, 200]
        client_keys.revoke(path, "second")
        await reload()
        assert re.search(r" WARNING +client keys: the file has none; every client gets 401\n", said[-1])
        assert [await ask(key) for key in (first, second)] == [401, 401]
    status, rest = await asyncio.to_thread(process.stop, signal.SIGTERM)
    assert status == 0
    everything = process.banner + "".join(said) + rest
    assert [secret for secret in (first, second, "sk-owned", "c4nary") if secret in everything] == []
    assert {call.headers["Authorization"] for call in upstream.calls} == {"Bearer sk-owned"}


async def has_failed(session: ClientSession, process: Process) -> bool:
    """Whether a metric says that the keys could not be read again."""
    async with session.get(process.admin_url + "/metrics") as answer:
        (value,) = re.findall(r'reload_failed\{files="client keys"\} (.*)', await answer.text())
        return float(value) == 1


def test_a_proxy_does_not_start_with_a_broken_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path
) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-owned")
    flags = ["--upstream", "openai", "--upstream-key-env", "UPSTREAM_KEY", "--client-keys", str(path)]
    command = ["embedding-proxy", "serve", "--port", "0", "--admin-port", "0", "--store", "memory:", *flags]
    for content, message in ((None, ": No such file or directory"), ("c4nary", ", line 1: accepted: NAME sha256:")):
        if content is not None:
            path.write_text(content)
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit, match="2"):
            commands.main()
        assert capsys.readouterr().err.startswith(f"embedding-proxy: client keys {path}{message}")
