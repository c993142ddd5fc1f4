"""The address that the image's health check asks is that of the proxy that runs in the container."""

import importlib.util
import socket
import threading
from pathlib import Path
from types import ModuleType

import pytest

from proxy.cli.options.proxy_settings import settings_of
from proxy.cli.serve import serve_command
from tests.deploy.manifests import DEPLOY

FILE = 'admin_port = 9300\nadmin_host = "0.0.0.0"\n'


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("probe", DEPLOY / "probe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def process(folder: Path, arguments: list[str], variables: dict[str, str]) -> Path:
    """What the kernel has under /proc of a process that was started like this in ``folder``."""
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cmdline").write_bytes(b"".join(argument.encode() + b"\0" for argument in arguments))
    (proc / "environ").write_bytes(b"".join(f"{name}={value}\0".encode() for name, value in variables.items()))
    (proc / "cwd").symlink_to(folder)
    return proc


@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        ([], {}),
        (["--admin-port", "9100"], {"ADMIN_PORT": "9200"}),
        (["--admin-port=9100", "--admin-port=9101", "--port", "9102"], {}),
        ([], {"ADMIN_PORT": "9200", "CONFIG": "proxy.toml"}),
        ([], {"CONFIG": "proxy.toml"}),
        (["--config", "proxy.toml"], {"ADMIN_HOST": "::1"}),
        (["--config", "proxy.toml", "--admin-host", "127.0.0.2"], {}),
        (["--config=other.toml"], {"CONFIG": "proxy.toml"}),
    ],
)
@pytest.mark.parametrize("program", [["/opt/bin/python", "/opt/bin/embedding-proxy"], ["/sbin/init", "--", "proxy"]])
def test_it_is_what_the_proxy_itself_makes_of_its_settings(
    probe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    program: list[str], flags: list[str], variables: dict[str, str],
) -> None:  # fmt: skip
    (tmp_path / "proxy.toml").write_text(FILE)
    (tmp_path / "other.toml").write_text("memory = '1MiB'\n")
    monkeypatch.chdir(tmp_path)
    given = {f"EMBEDDING_PROXY_{name}": value for name, value in variables.items()}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = settings_of(serve_command.make_context("serve", list(flags)))
    for name in given:
        monkeypatch.delenv(name)
    found = probe.address(process(tmp_path, [*program, "serve", *flags], given))
    assert found == (settings.admin_host, str(settings.admin_port))


def test_where_another_process_is_the_first_the_environment_counts(
    probe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EMBEDDING_PROXY_ADMIN_PORT", "9400")
    pause = process(tmp_path, ["/pause"], {"EMBEDDING_PROXY_ADMIN_PORT": "9500"})
    assert probe.address(pause) == ("127.0.0.1", "9400")
    assert probe.address(tmp_path / "none") == ("127.0.0.1", "9400")


def test_a_file_that_can_not_be_read_is_left_to_the_proxy(probe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "proxy.toml").write_text("admin_port =")
    assert probe.address(process(tmp_path, ["serve", "--config", "proxy.toml"], {"X": ""})) == ("127.0.0.1", "9090")


@pytest.mark.parametrize("host", ["0.0.0.0", "unix"])
def test_it_asks_where_the_port_listens(probe: ModuleType, tmp_path: Path, host: str) -> None:
    family, own = socket.AF_INET, ("127.0.0.1", 0)
    listening = socket.socket(socket.AF_UNIX) if host == "unix" else socket.socket(family)
    with listening:
        listening.bind(str(tmp_path / "admin") if host == "unix" else own)
        listening.listen()
        port = "0" if host == "unix" else str(listening.getsockname()[1])
        accepted: list[bytes] = []

        def accept() -> None:
            connection, _ = listening.accept()
            with connection:
                accepted.append(connection.recv(5))

        thread = threading.Thread(target=accept)
        thread.start()
        with probe.connected(f"unix:{tmp_path / 'admin'}" if host == "unix" else host, port) as connection:
            connection.sendall(b"hello")
        thread.join()
    assert accepted == [b"hello"]
