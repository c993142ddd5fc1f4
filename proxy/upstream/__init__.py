"""The client side of HTTP: upstreams, which one serves a model, and how each is reached.

Nothing here reads or writes the cache, or decides which clients may be served.
"""
