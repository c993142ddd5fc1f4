"""The sockets that clients connect to."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.protocol.hosts import UNIX_PREFIX

# Of connections that wait to be accepted. When it is full the kernel drops what some clients count as connected.
_BACKLOG = 4096
_ELSEWHERE = frozenset({errno.EADDRINUSE, errno.EACCES})
# Whoever shares the group, as the containers of a Pod do by its fsGroup; connecting takes the right to write.
_SOCKET_MODE = 0o660

Sockets = list[socket.socket]


@contextmanager
def opened(host: str, port: int, *, flag: str, copies: int = 1) -> Iterator[list[Sockets]]:
    """Listen on ``host``, which is an address, a name or ``unix:`` with a path; port 0 takes a free one.

    There are as many sets of sockets as ``copies``, among which the kernel shares out the connections to an address
    (SO_REUSEPORT, socket(7)); of a path there is one, which all have. Raises `ConfigError`, which names ``flag`` as the
    one for another port.
    """
    path = Path(host.removeprefix(UNIX_PREFIX)) if host.startswith(UNIX_PREFIX) else None
    if host == UNIX_PREFIX:
        raise ConfigError("--host unix: has no path; accepted: unix:/path/to/socket")
    try:
        sets = _tcp_sets(host, port, copies) if path is None else [[_unix_socket(path)]] * copies
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0
        why = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
        if path is not None:
            raise ConfigError(f"can't listen on {path}: {why}; choose another with --host") from error
        other = flag if number in _ELSEWHERE else flag.replace("port", "host")
        raise ConfigError(f"can't listen on {host}:{port}: {why}; choose another with {other}") from error
    own = None if path is None else _made(path)
    try:
        yield sets
    finally:
        for sockets in sets:
            close(sockets)
        # While this proxy drained another may have taken the path over.
        if path is not None and own == _made(path):
            path.unlink(missing_ok=True)


def close(sockets: Sockets) -> None:
    for listening in sockets:
        listening.close()


def url_of(sockets: Sockets) -> str:
    """What is asked there, as a URL without a path. On the socket of a path that can be anything, such as this."""
    name = sockets[0].getsockname()
    if sockets[0].family == socket.AF_UNIX:
        return "http://localhost"
    return f"http://{f'[{name[0]}]' if ':' in name[0] else name[0]}:{name[1]}"


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where one process of a proxy takes connections."""

    data: Sockets
    admin: Sockets


@contextmanager
def open_listeners(settings: Settings) -> Iterator[Listeners]:
    """Those of a proxy that is one process. Raises `ConfigError`."""
    with (
        opened(settings.host, settings.port, flag="--port") as (data,),
        opened(settings.admin_host, settings.admin_port, flag="--admin-port") as (admin,),
    ):
        yield Listeners(data, admin)


async def accept(stack: AsyncExitStack, runner: web.BaseRunner, sockets: Sockets) -> None:
    """Let ``runner`` answer what connects, until ``stack`` is left."""
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    for listening in sockets:
        await web.SockSite(runner, listening, backlog=_BACKLOG).start()


def _tcp_sets(host: str, port: int, copies: int) -> list[Sockets]:
    # Without SO_REUSEPORT at first: with it, two proxies could have one port and not know.
    first = _tcp_sockets(host, port, is_shared=False)
    if copies == 1:
        return [first]
    port = first[0].getsockname()[1]
    close(first)
    return [_tcp_sockets(host, port, is_shared=True) for _ in range(copies)]


def _tcp_sockets(host: str, port: int, *, is_shared: bool) -> Sockets:
    found: Sockets = []
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, address in dict.fromkeys((family, address[0]) for family, _, _, _, address in infos):
            wanted = port or (found[0].getsockname()[1] if found else 0)
            made = socket.create_server((str(address), wanted), family=family, backlog=_BACKLOG, reuse_port=is_shared)
            made.setblocking(False)
            found.append(made)
    except OSError:
        close(found)
        raise
    return found


def _unix_socket(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        try:
            listening.bind(str(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_left_behind(path):
                raise
            path.unlink()
            listening.bind(str(path))
        path.chmod(_SOCKET_MODE)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def _made(path: Path) -> tuple[int, int] | None:
    """What tells a file from another of its name, whose inode may be the same."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _is_left_behind(path: Path) -> bool:
    """Whether nobody listens on a socket any more, as after a crash."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a full backlog would have it wait
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:  # it is there, and busy or not for us
            return False
    return False
