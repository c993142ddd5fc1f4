"""Filling a cache before its clients ask: a corpus sent through a running proxy, or vectors that were paid for before
loaded into its store."""
