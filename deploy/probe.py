"""Ask the proxy in this container whether it is well: ``probe.py /healthz`` exits 0 for 200, 1 for anything else.

For HEALTHCHECK and for exec probes, which the kubelet needs where the admin port is on loopback. It imports as little
as it can: it is started every few seconds, and `embedding-proxy stats` takes five times as long.

The address is that of the proxy that runs as the container's first process: by its flags, its environment or its
configuration file, in this order, as the proxy itself reads them.
"""

import os
import socket
import sys
from pathlib import Path

_TIMEOUT_S = 3.0
_DEFAULTS = {"admin_host": "127.0.0.1", "admin_port": "9090"}
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask, not where to listen


def main() -> int:
    target = sys.argv[1]
    host, port = address(Path("/proc/1"))
    where = host if host.startswith("unix:") else f"port {port}"
    try:
        with connected(host, port) as connection:
            connection.sendall(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            status = connection.makefile("rb").readline().split()[1:2]
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{target} on {where}: {error}\n")
        return 1
    if status != [b"200"]:
        sys.stderr.write(f"{target} on {where}: {b' '.join(status).decode() or 'no answer'}\n")
        return 1
    return 0


def connected(host: str, port: str) -> socket.socket:
    """Raises `OSError`, and `ValueError` for a port that is no number."""
    if not host.startswith("unix:"):
        return socket.create_connection((_LOOPBACK.get(host, host), int(port)), timeout=_TIMEOUT_S)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_TIMEOUT_S)
    connection.connect(host.removeprefix("unix:"))
    return connection


def address(process: Path) -> tuple[str, str]:
    """Host and port of the admin port, by a process's folder under /proc."""
    arguments = _strings(process / "cmdline")
    if "serve" in arguments:
        arguments = arguments[arguments.index("serve") + 1 :]
        variables = dict(pair.partition("=")[::2] for pair in _strings(process / "environ")) or dict(os.environ)
    else:  # another process is the first, as where the containers of a Pod share their processes
        arguments, variables = [], dict(os.environ)
    config = _given("config", arguments, variables)
    in_file = _keys_of(process / "cwd" / Path(config).expanduser()) if config else {}
    host, port = (
        _given(key, arguments, variables) or str(in_file.get(key, "")) or default for key, default in _DEFAULTS.items()
    )
    return host, port


def _given(key: str, arguments: list[str], variables: dict[str, str]) -> str:
    """What a flag or a variable says; of several flags the last one."""
    flag = "--" + key.replace("_", "-")
    found = ""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument == flag:
            found = following
        elif argument.startswith(f"{flag}="):
            found = argument.removeprefix(f"{flag}=")
    variable = variables.get(f"EMBEDDING_PROXY_{key.upper()}", "")
    # Kubernetes sets it to tcp://… for a Service named embedding-proxy-admin, which the proxy ignores as well.
    return found or ("" if "://" in variable else variable)


def _strings(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    except OSError:
        return []


def _keys_of(path: Path) -> dict[str, object]:
    import tomllib  # noqa: PLC0415 - most containers have no file

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the proxy says what is wrong with it
        return {}


if __name__ == "__main__":
    sys.exit(main())
