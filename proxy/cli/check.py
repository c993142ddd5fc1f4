"""The command ``embedding-proxy check``: asks an upstream what it accepts."""

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import click
import msgspec
from aiohttp import UnixConnector

from proxy.app.upstreams import demo_upstream
from proxy.cli.options.config_file import config_file_of
from proxy.cli.options.config_flag import READS_CONFIG
from proxy.cli.options.table import BY_KEY
from proxy.cli.options.types import FILE, MODEL
from proxy.cli.options.upstreams import default_egress
from proxy.cli.progress import progress
from proxy.cli.stats_client import Unreachable
from proxy.config.secrets import read_secret
from proxy.config.settings import UpstreamSetting
from proxy.config.suggestion import suggestion
from proxy.config.upstream_urls import parse_upstream
from proxy.errors import ConfigError
from proxy.inquiry import interview
from proxy.inquiry.advice import advise
from proxy.inquiry.client import asking
from proxy.inquiry.facts import Facts
from proxy.inquiry.interview import Interview, NoAnswer
from proxy.inquiry.reply import Reply
from proxy.protocol.provider import Provider
from proxy.upstream.urls import Routes

# Options that `serve` has too; there they apply to more than one upstream.
_HELPS = {
    "provider": "Which provider's API the URL serves.",
    "upstream_proxy": "Forward proxy for the calls, such as `http://user:password@host:3128`. Proxy variables in the"
    " environment (`HTTPS_PROXY`, …) are ignored.",
    "upstream_ca": "PEM bundle of the certificate authorities to trust.",
    "upstream_cert": "PEM client certificate, or chain, for an upstream that requests one.",
    "upstream_cert_key": "Private key of `--upstream-cert`, in PEM and unencrypted.",
}
_DEFAULT_MAX_ITEMS = 256
_EXIT_DECLINED = 1

_PARAMETERS: list[click.Parameter] = [
    click.Argument(["upstream"], metavar="URL|NAME"),
    click.Option(["--model"], required=True, type=MODEL, help="The model to ask for."),
    click.Option(
        ["--key-env"], metavar="NAME", help="Env var holding the upstream's API key. Default: no key is sent."
    ),
    click.Option(
        ["--config"],
        type=FILE,
        **READS_CONFIG,
        help="TOML file whose [providers] tables apply.",
    ),
    *(replace(BY_KEY[key], help=text).parameter() for key, text in _HELPS.items()),
    click.Option(
        ["--max-items"],
        type=click.IntRange(1, 16_384),
        default=_DEFAULT_MAX_ITEMS,
        show_default=True,
        help="The largest batch to try, if the provider documents no smaller limit.",
    ),
    click.Option(["--yes"], is_flag=True, help="Do not ask before tokens are spent."),
    click.Option(["--json", "as_json"], is_flag=True, help="Print the facts as JSON."),
]


@click.command(name="check", params=_PARAMETERS)
@click.pass_context
def check_command(
    ctx: click.Context, /, upstream: str, model: str, *, key_env: str | None, yes: bool, as_json: bool, **options: Any
) -> None:
    """Ask an upstream what it accepts, and print how to serve it. It tries inputs, encodings and batches.

    URL is its base URL, as SDKs take it, or the name of a provider. The command spends a few tokens. Before that, it
    says how many at most.
    """
    setting = _setting(ctx, upstream, options["provider"])
    key = None if key_env is None else read_secret(key_env, os.environ, "--key-env")
    max_items = min(options["max_items"], setting.provider.limits.items)
    calls, tokens = interview.cost(max_items)
    _confirm(f"This makes at most {calls} calls for at most {tokens:,} tokens to {setting.base_url}.", is_agreed=yes)
    with progress("asking", calls) as advance:
        facts = asyncio.run(_ask(setting, key, model, max_items, lambda: advance(1)))
    advice = advise(facts, setting, key_env=key_env)
    if as_json:
        report = {"facts": facts, "serve": advice.serve, "toml": advice.toml}
        click.echo(msgspec.json.format(msgspec.json.encode(report)))
        return
    # Imported only here: other commands need not wait for rich.
    from proxy.cli import check_text  # noqa: PLC0415

    check_text.show(facts, advice)


def _setting(ctx: click.Context, upstream: str, name: str | None) -> UpstreamSetting:
    """Raises `ConfigError` and `click.BadParameter`."""
    rows = config_file_of(ctx).provider_rows()
    if name is not None and name not in rows:
        raise ConfigError(f"--provider: {name!r} is not a provider; {suggestion(name, rows)}")
    row = None if name is None else rows[name]
    setting = parse_upstream(upstream, row=row, rows=rows)
    if row is None:  # the address of a provider, given as a URL
        row = next((own for own in rows.values() if own.base_url == setting.base_url), setting.provider)
    if setting.is_demo:
        return setting
    return replace(setting, provider=row, egress=default_egress(ctx))


async def _ask(
    setting: UpstreamSetting, key: str | None, model: str, max_items: int, advance: Callable[[], object]
) -> Facts:
    """Raises `Unreachable` if the upstream does not answer."""
    url = _embeddings_url(setting)
    async with AsyncExitStack() as stack:
        connector = None
        if setting.is_demo:
            connector = UnixConnector(str(await stack.enter_async_context(demo_upstream())))
        ask = await stack.enter_async_context(asking(setting, url, key, connector=connector))

        async def counted(body: dict[str, Any]) -> Reply:
            reply = await ask(body)
            advance()
            return reply

        asked = Interview(counted, setting.provider, model, url=url, max_items=max_items)
        try:
            return await asked.run()
        except NoAnswer as error:
            raise Unreachable(f"{url} did not return a vector for model {model!r}: {error}") from error


def _embeddings_url(setting: UpstreamSetting) -> str:
    row: Provider = setting.provider
    route = Routes(setting.base_url, row).find("/v1" + row.path)
    return setting.base_url + row.path if route is None or not route.is_embeddings else route.url


def _confirm(cost: str, *, is_agreed: bool) -> None:
    """Raises `click.UsageError` where nobody can be asked, and `click.exceptions.Exit` if the answer is no."""
    if is_agreed:
        click.echo(f"embedding-proxy: {cost}", err=True)
    elif not sys.stdin.isatty():
        raise click.UsageError(f"{cost} To agree to that, add --yes")
    elif not click.confirm(f"{cost} Go on?", err=True):
        raise click.exceptions.Exit(_EXIT_DECLINED)
