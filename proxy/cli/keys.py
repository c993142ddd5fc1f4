"""The commands ``embedding-proxy keys``: the keys of the proxy's own clients."""

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import click
import orjson

from proxy.access import client_keys
from proxy.cli import stats_client
from proxy.cli.options import types


@click.group(name="keys")
def keys_group() -> None:
    """Manage client keys, for a proxy that has the upstream's key."""


_KEYS_FILE = click.option(
    "--client-keys",
    "path",
    type=types.FILE,
    envvar="EMBEDDING_PROXY_CLIENT_KEYS",
    show_envvar=True,
    required=True,
    help="The proxy's --client-keys file.",
)


@keys_group.command(name="add")
@click.argument("name")
@_KEYS_FILE
def keys_add(path: Path, name: str) -> None:
    """Create a client key and print it. It is shown only once: the file has only its hash."""
    click.echo(client_keys.add(path, name))
    _tell(f"added {name} to {path}")


@keys_group.command(name="rotate")
@click.argument("name")
@click.option(
    "--overlap",
    "overlap_s",
    type=types.OVERLAP,
    default="0s",
    show_default=True,
    help="How long the present key stays valid, such as 7d.",
)
@_KEYS_FILE
def keys_rotate(path: Path, name: str, overlap_s: float) -> None:
    """Replace a client's key and print the new one. The client keeps its name, its entries and its counts."""
    click.echo(client_keys.rotate(path, name, overlap_s=overlap_s, now_s=time.time()))
    _tell(f"replaced the key of {name} in {path}")


@keys_group.command(name="list")
@_KEYS_FILE
@click.option("--json", "is_json", is_flag=True, help="Print a JSON list.")
@click.option(
    "--admin-url",
    help="Also ask the proxy with this admin port, such as http://127.0.0.1:9090, when each was last used.",
)
def keys_list(path: Path, admin_url: str | None, *, is_json: bool) -> None:
    """Print the clients and their dates. These say when a key was created, when it ends, and when it was last used."""
    used = {} if admin_url is None else _last_used(admin_url)
    rows = [
        {"name": key.name, "since": key.since, "until": key.until, "last_used": used.get(key.name)}
        for key in client_keys.read(path)
    ]
    if is_json:
        click.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
        return
    for row in rows:
        until = f"  until {row['until']}" if row["until"] else ""
        last = "" if admin_url is None else f"  last used {row['last_used'] or 'not since the proxy started'}"
        click.echo(f"{row['since']}  {row['name']}{until}{last}")


@keys_group.command(name="revoke")
@click.argument("name")
@_KEYS_FILE
def keys_revoke(path: Path, name: str) -> None:
    """Remove a client's keys from the file."""
    client_keys.revoke(path, name)
    _tell(f"removed {name} from {path}")


def _tell(what: str) -> None:
    click.echo(f"embedding-proxy: {what}; send SIGHUP to a running proxy to reload it", err=True)


def _last_used(admin_url: str) -> Mapping[str, str]:
    """By the names of clients, as in RFC 3339. Raises `Unreachable`."""
    _, status = asyncio.run(stats_client.once(admin_url))
    return {
        client.name: datetime.fromtimestamp(client.last_used_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for client in status.clients
        if client.last_used_s is not None
    }
