"""The server's side of HTTP: listening sockets, connections and their timeouts, request bodies.

Nothing here knows about keys, vectors or upstreams.
"""
