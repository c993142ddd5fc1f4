"""The commands ``embedding-proxy cache …``, which work on a store, with or without running proxies on it."""

import click


@click.group(name="cache")
def cache_group() -> None:
    """Inspect, check, move and clear the entries of a store."""
