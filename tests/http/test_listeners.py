import errno
import socket
from pathlib import Path

import pytest
from aiohttp import ClientSession, UnixConnector

from proxy.errors import ConfigError
from proxy.http import listeners
from tests.conftest import StartProxy
from tests.support.redis_server import free_port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "::"])
def test_port_0_is_a_free_port(host: str) -> None:
    with listeners.opened(host, 0, flag="--port") as (sockets,):
        ports = {listening.getsockname()[1] for listening in sockets}
        assert len(ports) == 1
        assert listeners.url_of(sockets).endswith(f":{ports.pop()}")


def test_copies_share_one_port_and_others_cannot_have_it() -> None:
    with listeners.opened("127.0.0.1", 0, flag="--port", copies=3) as sets:
        (port,) = {listening.getsockname()[1] for sockets in sets for listening in sockets}
        assert len({listening.fileno() for sockets in sets for listening in sockets}) == 3
        for copies in (1, 2):
            with (
                pytest.raises(ConfigError, match="in use; choose another with --port"),
                listeners.opened("127.0.0.1", port, flag="--port", copies=copies),
            ):
                pass


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.1", r"192\.0\.2\.1:0: .*; choose another with --host"),
        ("no.such.host.invalid", "choose another with --host"),
        ("unix:/no/such/folder/x.sock", r"on /no/such/folder/x\.sock: No such file or directory"),
        ("unix:", "--host unix: has no path; accepted: unix:/path/to/socket"),
        ("unix:" + "x" * 200, "too long"),
    ],
)
def test_an_unusable_address_is_an_error(host: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message), listeners.opened(host, 0, flag="--port"):
        pass


@pytest.mark.parametrize(("flag", "named"), [("--port", "--host"), ("--admin-port", "--admin-host"), ("", "TMPDIR")])
def test_an_unusable_path_names_the_option_that_set_it(flag: str, named: str) -> None:
    with (
        pytest.raises(ConfigError, match=f"No such file or directory; choose another with {named}$"),
        listeners.opened("unix:/no/such/folder/x.sock", 0, flag=flag),
    ):
        pass


def test_too_many_sockets_for_the_limit_on_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_server(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("proxy.http.listeners.socket.create_server", create_server)
    with (
        pytest.raises(ConfigError, match=r"Too many open files; lower --workers, or raise the limit .*\(ulimit -n\)$"),
        listeners.opened("127.0.0.1", 0, flag="--port", copies=1000),
    ):
        pass


async def test_a_proxy_on_a_socket_of_a_path(start_proxy: StartProxy, tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    client = await start_proxy(host=f"unix:{path}")
    assert client.proxy.base_url == "http://localhost/v1"
    assert path.stat().st_mode & 0o777 == 0o660
    async with ClientSession(connector=UnixConnector(str(path))) as session:
        body = {"model": "m", "input": "x"}
        for cache in ("MISS", "HIT"):
            async with session.post(f"{client.proxy.base_url}/embeddings", json=body) as response:
                assert (response.status, response.headers["X-Cache"]) == (200, cache)


def test_a_path_is_taken_over_from_the_dead_and_not_from_the_living(tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with listeners.opened(f"unix:{path}", 0, flag="--port"):
        with pytest.raises(ConfigError, match="in use"), listeners.opened(f"unix:{path}", 0, flag="--port"):
            pass
        assert path.is_socket()
    assert not path.exists()
    path.write_text("somebody's file")
    with pytest.raises(ConfigError, match="in use"), listeners.opened(f"unix:{path}", 0, flag="--port"):
        pass
    assert path.read_text() == "somebody's file"


def test_a_proxy_that_ends_leaves_its_successors_socket(tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    old_path = listeners.opened(f"unix:{path}", 0, flag="--port")
    (sockets,) = old_path.__enter__()
    listeners.close(sockets)
    with listeners.opened(f"unix:{path}", 0, flag="--port"):
        old_path.__exit__(None, None, None)
        assert path.is_socket()


def test_a_socket_whose_backlog_is_full_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(ConfigError, match="in use"), listeners.opened(f"unix:{path}", 0, flag="--port"):
            pass
        for client in waiting:
            client.close()


def test_what_was_opened_is_closed_where_the_rest_can_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    names = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
    ]
    with socket.create_server(("::1", port), family=socket.AF_INET6), monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", lambda *_, **__: names)
        with pytest.raises(ConfigError, match="in use"), listeners.opened("localhost", port, flag="--port"):
            pass
    with socket.create_server(("127.0.0.1", port)):
        pass
