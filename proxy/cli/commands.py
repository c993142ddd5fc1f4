"""The command ``embedding-proxy``, and its error messages."""

import asyncio
import errno
import os
import sys
from contextlib import suppress
from typing import Any

import click
from click.core import ParameterSource

from proxy import __version__
from proxy.cli import providers_text, stats_client, stats_text
from proxy.cli.analyze import analyze_command
from proxy.cli.cache_commands import cache_group
from proxy.cli.check import check_command
from proxy.cli.explain import explain_command
from proxy.cli.keys import keys_group
from proxy.cli.load import load_command
from proxy.cli.options import environment, types
from proxy.cli.options.admin import admin_url_of, with_admin_options
from proxy.cli.options.config_file import config_file_of
from proxy.cli.options.config_flag import READS_CONFIG
from proxy.cli.purge import purge_command
from proxy.cli.serve import serve_command
from proxy.cli.stats_client import Unreachable
from proxy.cli.warm import warm_command
from proxy.config.suggestion import suggestion
from proxy.errors import ConfigError, StoreError
from proxy.filling.replies import Stopped
from proxy.process import run
from proxy.protocol.providers import GENERIC

_EXIT_UNREACHABLE = 1  # of a proxy or a store
_EXIT_OUTPUT = 1
_OUTPUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130  # 128 and SIGINT, as of shells


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="embedding-proxy")
def cli() -> None:
    """An embedding cache and deduplicating reverse proxy for OpenAI-compatible APIs."""


cli.add_command(serve_command)
cli.add_command(cache_group)
cache_group.add_command(purge_command)
cache_group.add_command(load_command)
cli.add_command(warm_command)
cli.add_command(explain_command)
cli.add_command(analyze_command)
cli.add_command(check_command)
cli.add_command(keys_group)


@cli.command(name="providers")
@click.option(
    "--config",
    type=types.FILE,
    **READS_CONFIG,
    help="TOML file whose [providers] tables add providers or change them.",
)
@click.argument("names", nargs=-1)
@click.pass_context
def providers_command(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Print the table of providers, or only the providers named."""
    rows = config_file_of(ctx).provider_rows()
    for name in names:
        if name not in rows:
            raise click.UsageError(f"unknown provider {name!r}; {suggestion(name, rows)}")
    click.echo("\n\n".join(providers_text.described(rows[name]) for name in names or rows))
    click.echo(
        f"\nFor all of them, lists for {', '.join(GENERIC.fused_models)} and any request for"
        f" {', '.join(GENERIC.multi_vector_models)} are relayed and not cached."
    )


@cli.command(name="demo")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=types.PORT, default=8081, show_default=True, help="Port to listen on.")
def demo_command(host: str, port: int) -> None:
    """Serve only the demo upstream, to test a proxy with. Its vectors carry no meaning."""
    run.run_loop(run.serve_demo(host, port, announce=lambda url: click.echo(f"demo upstream on {url}; Ctrl-C ends it")))


@cli.command(name="stats")
@click.option("--watch", "is_watching", is_flag=True, help="Refresh every 2 s, until Ctrl-C.")
@click.option("--json", "is_json", is_flag=True, help="Print the status once, as JSON: all clients, not the first ten.")
@with_admin_options
@click.pass_context
def stats_command(ctx: click.Context, /, *, is_watching: bool, is_json: bool, **_: Any) -> None:
    """Print live statistics of a running proxy. They include hits, savings, clients, latency and circuit breakers."""
    if is_watching and is_json:
        raise click.UsageError("--watch is for people and --json for programs; use one of them")
    admin_url = admin_url_of(ctx)
    with suppress(KeyboardInterrupt):
        asyncio.run(_watch(admin_url) if is_watching else _print_stats(admin_url, is_json=is_json))


async def _print_stats(admin_url: str, *, is_json: bool) -> None:
    written, status = await stats_client.once(admin_url)
    click.echo(written if is_json else stats_text.render(status))


async def _watch(admin_url: str) -> None:
    shown = ""
    async for status in stats_client.watch(admin_url):
        if isinstance(status, Unreachable):
            # The last statistics stay on the screen, below the error.
            click.echo(_repainted(f"{status}\n{shown}"), nl=False)
        else:
            shown = "\n" + stats_text.render(status)
            click.echo(_repainted(stats_text.render(status)), nl=False)


def _repainted(text: str) -> str:
    """``text``, drawn over the previous text without clearing the terminal first, which would flicker."""
    lines = "".join(f"{line}\x1b[K\n" for line in text.split("\n"))
    return f"\x1b[H{lines}\x1b[J"


def main() -> None:
    """Run the command. An error in its settings is one line on stderr and exit status 2; a proxy or a store that can't
    be used, one line and exit status 1."""
    environment.drop_kubernetes_service_env()
    try:
        status = _run()
        sys.stdout.flush()
    except click.ClickException as error:
        _exit_with(_located(error))
    except ConfigError as error:
        _exit_with(str(error))
    except (Unreachable, StoreError, Stopped) as error:
        _exit_with(str(error), _EXIT_UNREACHABLE)
    except OSError as error:
        if error.filename is not None:
            _exit_with(f"{error.filename}: {error.strerror}")
        if error.errno not in _OUTPUT_ERRORS:  # a fault of the program's
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # its last flush would fail too
        _exit_with(f"can't write the output: {error.strerror}", _EXIT_OUTPUT)
    except (click.Abort, KeyboardInterrupt):
        _exit_with("interrupted", _EXIT_INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _run() -> object:
    """What the command returns."""
    try:
        return cli.main(prog_name="embedding-proxy", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return _EXIT_USAGE


def _exit_with(message: str, status: int = _EXIT_USAGE) -> None:
    click.echo(f"embedding-proxy: {message}", err=True)
    sys.exit(status)


def _located(error: click.ClickException) -> str:
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
