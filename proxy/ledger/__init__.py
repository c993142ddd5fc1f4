"""Accounting by client: who used what, what it cost, and what the cache saved (pure).

Nothing here refuses a request: `proxy.fetch.spending` keeps clients within their budgets.
"""
