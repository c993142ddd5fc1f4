"""The sockets that clients connect to."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.protocol.hosts import UNIX_PREFIX

# Connections that wait to be accepted. When the queue is full, the kernel drops some that clients count as connected.
_BACKLOG = 4096
# Errors that another port may avoid. With any other error, the host is wrong.
_PORT_ERRORS = frozenset({errno.EADDRINUSE, errno.EACCES})
_DESCRIPTOR_ERRORS = frozenset({errno.EMFILE, errno.ENFILE})
# For the user and the group: the containers of a Pod share a group (fsGroup). Connecting needs write permission.
_SOCKET_MODE = 0o660

Sockets = list[socket.socket]


@contextmanager
def opened(host: str, port: int, *, flag: str, copies: int = 1) -> Iterator[list[Sockets]]:
    """Listen on ``host``: an address, a name, or ``unix:`` and a path. Port 0 is any free port.

    Yields ``copies`` sets of sockets. The kernel distributes the connections to an address among them (SO_REUSEPORT,
    socket(7)); for a path, all sets have the same socket. Raises `ConfigError`; ``flag`` is the option that sets the
    port.
    """
    path = Path(host.removeprefix(UNIX_PREFIX)) if host.startswith(UNIX_PREFIX) else None
    host_flag = flag.replace("port", "host") or "TMPDIR"  # a worker's own socket is in the folder for temporary files
    if host == UNIX_PREFIX:
        raise ConfigError(f"{host_flag} unix: has no path; accepted: unix:/path/to/socket")
    try:
        sets = _tcp_sets(host, port, copies) if path is None else [[_unix_socket(path)]] * copies
    except (OSError, UnicodeError) as error:
        where, port_flag = (f"{host}:{port}", flag) if path is None else (path, host_flag)
        raise ConfigError(f"can't listen on {where}: {_reason(error, port_flag, host_flag)}") from error
    own = None if path is None else _identity(path)
    try:
        yield sets
    finally:
        for sockets in sets:
            close(sockets)
        # While this proxy drained, another one may have created the path again.
        if path is not None and own == _identity(path):
            path.unlink(missing_ok=True)


def _reason(error: Exception, port_flag: str, host_flag: str) -> str:
    """Why an address can't be listened on, and what to do about it."""
    number = getattr(error, "errno", None) or 0
    why = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
    if number in _DESCRIPTOR_ERRORS:  # each worker needs some
        return f"{why}; lower --workers, or raise the limit on open files (ulimit -n)"
    return f"{why}; choose another with {port_flag if number in _PORT_ERRORS else host_flag}"


def close(sockets: Sockets) -> None:
    for listening in sockets:
        listening.close()


def refuse(sockets: Sockets) -> None:
    """Refuse connections until `accept` listens again, so that the kernel gives new ones to the other sets. A path has
    the same socket in all sets, which goes on listening."""
    for listening in sockets:
        if listening.family != socket.AF_UNIX:
            with suppress(OSError):  # it does not listen
                listening.shutdown(socket.SHUT_RD)


def url_of(sockets: Sockets) -> str:
    """The URL of these sockets, without a path. For a Unix socket the host can be anything."""
    name = sockets[0].getsockname()
    if sockets[0].family == socket.AF_UNIX:
        return "http://localhost"
    return f"http://{f'[{name[0]}]' if ':' in name[0] else name[0]}:{name[1]}"


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where one process accepts connections."""

    data: Sockets
    admin: Sockets


@contextmanager
def open_listeners(settings: Settings) -> Iterator[Listeners]:
    """The listeners of a proxy with one process. Raises `ConfigError`."""
    with (
        opened(settings.host, settings.port, flag="--port") as (data,),
        opened(settings.admin_host, settings.admin_port, flag="--admin-port") as (admin,),
    ):
        yield Listeners(data, admin)


async def accept(stack: AsyncExitStack, runner: web.BaseRunner, sockets: Sockets) -> None:
    """Let ``runner`` serve the connections until ``stack`` is closed."""
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    for listening in sockets:
        await web.SockSite(runner, listening, backlog=_BACKLOG).start()


def _tcp_sets(host: str, port: int, copies: int) -> list[Sockets]:
    # First without SO_REUSEPORT: with it, two proxies could listen on one port without an error.
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
            chosen = port or (found[0].getsockname()[1] if found else 0)
            made = socket.create_server((str(address), chosen), family=family, backlog=_BACKLOG, reuse_port=is_shared)
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
            if error.errno != errno.EADDRINUSE or not _is_stale(path):
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


def _identity(path: Path) -> tuple[int, int] | None:
    """Identifies a file: one created later under the same name may have the same inode, but has another ctime."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _is_stale(path: Path) -> bool:
    """Whether no process listens on a socket any more, as after a crash."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # with a full backlog, it would wait
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:  # a process listens, and is busy or does not permit the connection
            return False
    return False
