"""The settings of a proxy, from flags, environment and file."""

import os
from dataclasses import replace

import click

from proxy.cli.options.config_file import config_file_of
from proxy.cli.options.option import settings_fields
from proxy.cli.options.table import OPTIONS
from proxy.cli.options.upstreams import default_egress, upstreams
from proxy.config import checks
from proxy.config.secrets import read_mac_key
from proxy.config.settings import Settings


def settings_of(ctx: click.Context) -> Settings:
    """The settings that a command with all of `OPTIONS` was given. Raises `ConfigError` and `click.BadParameter`."""
    default, routed = upstreams(ctx)
    settings = Settings(
        **settings_fields(OPTIONS, ctx.params),
        upstream=default,
        routed=routed,
        record_key=_mac_key(ctx, "record_key_env"),
        client_labels_key=_mac_key(ctx, "client_labels_key_env"),
        prices=config_file_of(ctx).prices_by_model(),
    )
    budgets = config_file_of(ctx).budgets_of_clients(names_clients=settings.counts_clients)
    settings = replace(settings, budgets=budgets)
    checks.require_client_auth(settings)
    checks.require_use_of(default_egress(ctx), settings)
    checks.forbid_contradictions(settings)
    checks.require_canary(settings)
    if settings.traces == "otlp":
        checks.require_otlp(os.environ)
    return settings


def _mac_key(ctx: click.Context, key: str) -> bytes | None:
    name = ctx.params[key]
    return None if name is None else read_mac_key(name, os.environ, "--" + key.replace("_", "-"))
