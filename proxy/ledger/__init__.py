"""Accounting by client: who used what, what it cost, and what the cache saved (pure)."""
