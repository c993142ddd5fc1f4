"""Ask the proxy in this container whether it is well: ``probe.py /healthz`` exits 0 for 200, 1 for anything else.

For HEALTHCHECK and for exec probes, which the kubelet needs where the admin port is on loopback. It imports as little
as it can: it is started every few seconds, and `embedding-proxy stats` takes five times as long.
"""

import os
import socket
import sys

_TIMEOUT_S = 3.0
_DEFAULT_PORT = 9090


def main() -> int:
    target = sys.argv[1]
    given = os.environ.get("EMBEDDING_PROXY_ADMIN_PORT", "")
    # Kubernetes sets it to tcp://… for a Service named embedding-proxy-admin, which the proxy ignores as well.
    port = int(given) if given.isdecimal() else _DEFAULT_PORT
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as connection:
            connection.sendall(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            status = connection.makefile("rb").readline().split()[1:2]
    except OSError as error:
        sys.stderr.write(f"{target} on port {port}: {error}\n")
        return 1
    if status != [b"200"]:
        sys.stderr.write(f"{target} on port {port}: {b' '.join(status).decode() or 'no answer'}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
