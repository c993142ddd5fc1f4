"""The command ``embedding-proxy``, and what it says when something is wrong."""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import click
import orjson
import uvloop
from click.core import ParameterSource

from proxy import __version__
from proxy.access import client_keys
from proxy.cli import serve, stats_client, stats_text
from proxy.cli.serve import EXIT_USAGE, serve_command
from proxy.cli.stats_client import Unreachable
from proxy.errors import ConfigError
from proxy.process import run
from proxy.protocol.provider import InputFormat, Provider
from proxy.protocol.providers import GENERIC

_EXIT_UNREACHABLE = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="embedding-proxy")
def cli() -> None:
    """An embedding cache and deduplicating reverse proxy for OpenAI-compatible APIs."""


cli.add_command(serve_command)


@cli.command(name="providers")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=serve.read_config_file,
    is_eager=True,
    expose_value=False,
    help="TOML file whose [providers] tables add rows or change them.",
)
@click.argument("names", nargs=-1)
@click.pass_context
def providers_command(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Print what is known of each provider, or of those named."""
    rows = serve.provider_rows(ctx)
    for name in names:
        if name not in rows:
            raise click.UsageError(serve.unknown(f"provider {name!r}", name, list(rows)))
    click.echo("\n\n".join(_described(rows[name]) for name in names or rows))
    click.echo(
        f"\nFor all of them, lists for {', '.join(GENERIC.fused_models)} and any request for"
        f" {', '.join(GENERIC.multi_vector_models)} are relayed and not cached."
    )


def _encodings(row: Provider) -> list[str]:
    chosen = [f"{name} ({' '.join(sorted(values))})" for name, values in sorted(row.encoding.items())]
    return chosen + [f"{name} ({value})" for name, value in sorted(row.fixed.items())]


def _described(row: Provider) -> str:
    """A row of the table, for people."""
    facts = {
        "auth": row.auth,
        "input": ", ".join(form.value for form in InputFormat if form in row.inputs),
        "key": ", ".join(sorted(row.key)),
        "neutral": ", ".join(sorted(row.neutral)),
        "headers": f"neutral: {', '.join(sorted(row.neutral_headers))}" if row.neutral_headers else "",
        "encoding": ", ".join(_encodings(row)),
        "cross-item": ", ".join(
            f"{k} other than {orjson.dumps(v).decode()}" for k, v in sorted(row.cross_item.items())
        ),
        "fused": ", ".join(sorted(set(row.fused_models) - set(GENERIC.fused_models))),
        "multivector": ", ".join(sorted(set(row.multi_vector_models) - set(GENERIC.multi_vector_models))),
        "limits": str(row.limits),
    }
    where = "any base URL, " + row.path if row.base_url is None else row.base_url + row.path
    lines = [f"{row.name:<12}{where}", *(f"  {what:<12}{said}" for what, said in facts.items() if said)]
    return "\n".join(lines)


@cli.group(name="keys")
def keys_group() -> None:
    """The keys of this proxy's own clients, for a proxy that holds the upstream's key."""


_KEYS_FILE = click.option(
    "--client-keys",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="EMBEDDING_PROXY_CLIENT_KEYS",
    show_envvar=True,
    required=True,
    help="The file that the proxy is given with --client-keys.",
)


@keys_group.command(name="add")
@click.argument("name")
@_KEYS_FILE
def keys_add(path: Path, name: str) -> None:
    """Make a key for a client and print it: this once, for the file has only its hash."""
    click.echo(client_keys.add(path, name))
    click.echo(f"embedding-proxy: {name} is in {path}; a running proxy reads it on SIGHUP", err=True)


@keys_group.command(name="list")
@_KEYS_FILE
def keys_list(path: Path) -> None:
    """Print the names of the clients, and when their keys were made."""
    for key in client_keys.read(path):
        click.echo(f"{key.since}  {key.name}")


@keys_group.command(name="revoke")
@click.argument("name")
@_KEYS_FILE
def keys_revoke(path: Path, name: str) -> None:
    """Take a client's key out of the file."""
    client_keys.revoke(path, name)
    click.echo(f"embedding-proxy: {name} is no longer in {path}; a running proxy reads it on SIGHUP", err=True)


@cli.command(name="demo")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=serve.PORT, default=8081, show_default=True, help="Port to listen on.")
def demo_command(host: str, port: int) -> None:
    """Serve the demo upstream alone, to put proxies in front of: its vectors carry no meaning."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            run.serve_demo(host, port, announce=lambda url: click.echo(f"demo upstream on {url}; Ctrl-C ends it"))
        )


@cli.command(name="stats")
@click.option("--watch", "is_watching", is_flag=True, help="Show it anew every 2 s, until Ctrl-C.")
@click.option(
    "--admin-url",
    default=lambda: f"http://127.0.0.1:{os.environ.get('EMBEDDING_PROXY_ADMIN_PORT', '9090')}",
    show_default="http://127.0.0.1:9090, or the port of EMBEDDING_PROXY_ADMIN_PORT",
    help="Where the proxy's admin port is.",
)
def stats_command(admin_url: str, *, is_watching: bool) -> None:
    """Print how a running proxy does: hits, savings, latency, breakers."""
    with suppress(KeyboardInterrupt):
        asyncio.run(_watch(admin_url) if is_watching else _print_stats(admin_url))


async def _print_stats(admin_url: str) -> None:
    click.echo(stats_text.render(await stats_client.once(admin_url)))


async def _watch(admin_url: str) -> None:
    shown = ""
    async for status in stats_client.watch(admin_url):
        if isinstance(status, Unreachable):
            # What was known last stays, below the line that says it is old.
            click.echo(_repainted(f"{status}\n{shown}"), nl=False)
        else:
            shown = "\n" + stats_text.render(status)
            click.echo(_repainted(stats_text.render(status)), nl=False)


def _repainted(text: str) -> str:
    """Over what the terminal shows, without the flicker of clearing it first. A pipe gets the text alone."""
    lines = "".join(f"{line}\x1b[K\n" for line in text.split("\n"))
    return f"\x1b[H{lines}\x1b[J"


def main() -> None:
    """Run the command; whatever is wrong with its settings is one line on stderr and exit status 2, a proxy that can't
    be reached likewise and 1."""
    serve.drop_kubernetes_service_env()
    try:
        status = cli.main(prog_name="embedding-proxy", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        _exit_with(_said_where(error))
    except ConfigError as error:
        _exit_with(str(error))
    except Unreachable as error:
        _exit_with(str(error), _EXIT_UNREACHABLE)
    except click.Abort:
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _exit_with(message: str, status: int = EXIT_USAGE) -> None:
    click.echo(f"embedding-proxy: {message}", err=True)
    sys.exit(status)


def _said_where(error: click.ClickException) -> str:
    """The error in one line, naming the flag, variable or key that the bad value came from."""
    if isinstance(error, click.MissingParameter) and error.param is not None:
        variable = f", or {error.param.envvar} in the environment" if error.param.envvar else ""
        return f"{'/'.join(error.param.opts)} is missing: set it{variable}; see --help"
    message = " ".join(error.format_message().split())
    if not isinstance(error, click.BadParameter) or error.param is None or error.ctx is None:
        return message
    name = error.param.name or ""
    match error.ctx.get_parameter_source(name):
        case ParameterSource.ENVIRONMENT:
            where = str(error.param.envvar)
        case ParameterSource.DEFAULT_MAP:
            where = f"{name} in the configuration file"
        case _:
            where = error.param.opts[0]
    return f"{where}: {' '.join(error.message.split())}"
