"""The client's side of HTTP: upstreams, which one serves a model, and how each is reached.

Nothing here reads or writes the cache, or decides who may be served.
"""
