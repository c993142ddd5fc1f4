"""The upstreams of a proxy, from the options that name one and the tables of the file that name several."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import click
from click.core import ParameterSource

from proxy.cli.options.config_file import ConfigFile, config_file_of
from proxy.config.secrets import read_secret
from proxy.config.settings import UpstreamSetting
from proxy.config.suggestion import suggestion
from proxy.config.upstream_tables import parse_upstreams
from proxy.config.upstream_urls import parse_upstream
from proxy.errors import ConfigError
from proxy.protocol.provider import Provider
from proxy.upstream.egress import Egress

# Options that apply to `--upstream`, and the keys that replace them in an [[upstream]] table.
_OF_A_TABLE = (("upstream_key_env", "key_env"), ("canary_key_env", "canary_key_env"), ("provider", "provider"))


def upstreams(ctx: click.Context) -> tuple[UpstreamSetting, tuple[UpstreamSetting, ...]]:
    """The default upstream, and those to which models are routed. A flag or a variable replaces the file's default.

    Raises `ConfigError` and `click.BadParameter`.
    """
    file = config_file_of(ctx)
    rows = file.provider_rows()
    tables = parse_upstreams(file.upstream, rows, os.environ, file.path, egress=default_egress(ctx))
    routed = tuple(setting for setting in tables if setting.models)
    default = next((setting for setting in tables if not setting.models), None)
    is_given = ctx.get_parameter_source("upstream") is not ParameterSource.DEFAULT
    if default is None and tables and not is_given:
        raise ConfigError(
            f"{file.path}: every [[upstream]] has models, so no upstream serves other models;"
            " add a table without models, or set --upstream"
        )
    if default is None or is_given:
        return _default_upstream(ctx, rows, routed), routed
    for key, own in _OF_A_TABLE:
        if ctx.params[key] is not None:
            raise _bad(ctx, key, f"it needs --upstream; for an [[upstream]] table, set its {own}")
    return default, routed


def default_egress(ctx: click.Context) -> Egress:
    """How to reach upstreams whose tables set nothing else. Raises `click.BadParameter`."""
    values = ctx.params
    if values["upstream_cert_key"] is not None and values["upstream_cert"] is None:
        raise _bad(ctx, "upstream_cert_key", "it needs --upstream-cert")
    return Egress(
        proxy=values["upstream_proxy"],
        ca=values["upstream_ca"],
        cert=values["upstream_cert"],
        cert_key=values["upstream_cert_key"],
    )


def _default_upstream(
    ctx: click.Context, rows: Mapping[str, Provider], routed: Sequence[UpstreamSetting]
) -> UpstreamSetting:
    setting = _upstream_option(ctx, rows)
    if setting.name in {other.name for other in routed}:
        setting = replace(setting, name=f"{setting.name} (default)")
    _require_known_fallbacks(config_file_of(ctx), setting, routed)
    if (variable := ctx.params["upstream_key_env"]) is not None:
        setting = replace(setting, key=read_secret(variable, os.environ, "--upstream-key-env"))
    if (variable := ctx.params["canary_key_env"]) is not None:
        setting = replace(setting, canary_key=read_secret(variable, os.environ, "--canary-key-env"))
    return setting


def _require_known_fallbacks(file: ConfigFile, default: UpstreamSetting, routed: Sequence[UpstreamSetting]) -> None:
    """Refuse a fallback to the file's default upstream if `--upstream` has replaced it. Raises `ConfigError`."""
    names = {default.name, *(setting.name for setting in routed)}
    for setting in routed:
        for other in setting.same_model:
            if other.upstream not in names:
                raise ConfigError(
                    f"{file.path}: upstream {setting.name!r} has same_model {other.upstream!r}, which --upstream"
                    " replaces; give that table models, or remove --upstream"
                )


def _upstream_option(ctx: click.Context, rows: Mapping[str, Provider]) -> UpstreamSetting:
    name = ctx.params["provider"]
    row = None if name is None else rows.get(name)
    if name is not None and row is None:
        raise _bad(ctx, "provider", f"{name!r} is not a provider; {suggestion(name, rows)}")
    try:
        setting = parse_upstream(ctx.params["upstream"], row=row, rows=rows)
    except ConfigError as error:
        raise _bad(ctx, "upstream", str(error)) from error
    if not setting.is_demo:
        setting = replace(setting, egress=default_egress(ctx))
    if row is not None and setting.provider is not row and not _is_overridden(ctx):
        raise _bad(ctx, "provider", f"{name} needs a base URL, but the upstream is {setting.name}")
    return setting


def _is_overridden(ctx: click.Context) -> bool:
    """Whether the provider comes from the file, but a flag or a variable has replaced the file's upstream."""
    sources = [ctx.get_parameter_source(name) for name in ("provider", "upstream")]
    return sources[0] is ParameterSource.DEFAULT_MAP and sources[1] is not ParameterSource.DEFAULT_MAP


def _bad(ctx: click.Context, key: str, message: str) -> click.BadParameter:
    param = next(param for param in ctx.command.params if param.name == key)
    return click.BadParameter(message, ctx=ctx, param=param)
