"""Names of hosts that mean something to the proxy (pure)."""

# Before the path of a UNIX domain socket, in place of an address.
UNIX_PREFIX = "unix:"
# The names by which a client on the same machine reaches a server.
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
