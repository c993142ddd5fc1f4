"""A client's key is replaced: the present one stays valid for a while, and not longer."""

import json
import stat
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from proxy.access import client_keys
from proxy.access.client_keys import ClientKeys
from proxy.cli import commands
from proxy.config.settings import UpstreamSetting
from proxy.errors import ConfigError
from tests.conftest import StartProxy
from tests.support.scripted import ScriptedUpstream

NOW_S = 1_800_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clients"


def test_both_keys_are_valid_during_the_overlap(path: Path) -> None:
    clock = [NOW_S]
    old = client_keys.add(path, "app")
    beside = client_keys.add(path, "beside")
    path.chmod(0o640)
    new = client_keys.rotate(path, "app", overlap_s=60, now_s=NOW_S)
    keys = ClientKeys(path, clock=lambda: clock[0])
    assert [keys.name_of(key) for key in (old, new, beside)] == ["app", "app", "beside"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    version = keys.keys_version
    clock[0] += 59
    keys.drop_ended()
    assert (keys.name_of(old), keys.keys_version) == ("app", version)
    clock[0] += 1
    keys.drop_ended()
    assert [keys.name_of(key) for key in (old, new, beside)] == [None, "app", "beside"]
    assert keys.keys_version > version
    keys.reload()
    assert keys.name_of(old) is None


def test_without_an_overlap_the_old_key_is_gone(path: Path) -> None:
    old = client_keys.add(path, "app")
    new = client_keys.rotate(path, "app", overlap_s=0, now_s=NOW_S)
    keys = ClientKeys(path)
    assert (keys.name_of(old), keys.name_of(new)) == (None, "app")
    assert len(path.read_text().splitlines()) == 1


def test_a_second_rotation_does_not_prolong_the_first(path: Path) -> None:
    first = client_keys.add(path, "app")
    second = client_keys.rotate(path, "app", overlap_s=60, now_s=NOW_S)
    client_keys.rotate(path, "app", overlap_s=600, now_s=NOW_S + 30)
    ends = {key.digest: key.until_s for key in client_keys.read(path)}
    assert sorted(filter(None, ends.values())) == [NOW_S + 60, NOW_S + 630]
    client_keys.rotate(path, "app", overlap_s=600, now_s=NOW_S + 100)
    keys = ClientKeys(path, clock=lambda: NOW_S + 100)
    assert (keys.name_of(first), keys.name_of(second)) == (None, "app")
    client_keys.revoke(path, "app")
    assert path.read_text() == ""


def test_comments_and_other_lines_stay(path: Path) -> None:
    path.write_text("# ours\n\n" + f"app sha256:{'0' * 64} 2026-01-01\nb sha256:{'1' * 64} 2026-01-01\n")
    client_keys.rotate(path, "app", overlap_s=60, now_s=NOW_S)
    lines = path.read_text().splitlines()
    assert lines[:2] == ["# ours", ""]
    assert lines[2] == f"app sha256:{'0' * 64} 2026-01-01 until:2027-01-15T08:01:00Z"
    assert lines[3].startswith("b ")
    assert lines[4].startswith("app sha256:")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("until:2026-13-01T00:00:00Z", "line 1: there is no such time as 2026-13-01T00:00:00Z"),
        ("until:tomorrow", "line 1: accepted: NAME"),
    ],
)
def test_a_wrong_end_is_one_line(path: Path, line: str, message: str) -> None:
    path.write_text(f"app sha256:{'0' * 64} 2026-01-01 {line}\n")
    with pytest.raises(ConfigError, match=message):
        client_keys.read(path)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["embedding-proxy", "keys", *map(str, arguments)])
    with pytest.raises(SystemExit, match="0"):
        commands.main()


def test_commands_rotate_and_list_the_keys_of_a_client(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path
) -> None:
    monkeypatch.setenv("EMBEDDING_PROXY_CLIENT_KEYS", str(path))
    run(monkeypatch, "add", "app")
    run(monkeypatch, "rotate", "app", "--overlap", "7d")
    out, err = capsys.readouterr()
    assert all(key.startswith("ep-") for key in out.split())
    assert "replaced the key of app" in err
    run(monkeypatch, "list", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["app", "app"]
    assert rows[0]["until"].endswith("Z")
    assert (rows[1]["until"], rows[1]["last_used"]) == (None, None)


async def test_an_ended_key_is_refused_although_its_bytes_are_known(
    start_proxy: StartProxy, upstream: ScriptedUpstream, path: Path
) -> None:
    old = client_keys.add(path, "app")
    client_keys.rotate(path, "app", overlap_s=60, now_s=NOW_S)
    clock = [NOW_S]
    owned = UpstreamSetting(name="scripted", base_url=upstream.base_url, key="held")
    client = await start_proxy(upstream=owned, client_keys=path, clock=lambda: clock[0])
    for _ in range(6):
        assert (await client.post({"model": "m", "input": "a"}, key=f"Bearer {old}")).status == 200
    clock[0] += 60
    keys = client.proxy.client_keys
    assert keys is not None
    keys.drop_ended()  # as the proxy does once a second
    assert (await client.post({"model": "m", "input": "a"}, key=f"Bearer {old}")).status == 401
    (shown,) = (await client.proxy.status_page.status()).clients[:1]
    assert (shown.name, shown.requests["hit"]) == ("app", 5)
    assert shown.last_used_s is not None
    assert sha256(old.encode()).hexdigest() in path.read_text()
