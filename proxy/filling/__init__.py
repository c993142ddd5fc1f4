"""Filling a cache before its clients ask: a corpus sent through a running proxy, or vectors that were paid for before
loaded into its store.

Nothing here derives a key: callers hand in how requests are read.
"""
