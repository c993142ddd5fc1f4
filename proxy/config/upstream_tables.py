"""``[[upstream]]`` of the configuration file: several upstreams, by model (pure)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from proxy.config.paths import parse_file
from proxy.config.secrets import read_secret
from proxy.config.settings import RateLimit, SameModel, UpstreamSetting
from proxy.config.suggestion import suggestion
from proxy.config.tables import Name, NonEmpty, read_table
from proxy.config.upstream_urls import parse_base_url
from proxy.errors import ConfigError
from proxy.protocol.provider import Provider
from proxy.protocol.providers import GENERIC
from proxy.upstream.egress import DIRECT, Egress, parse_proxy


class _SameModelTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """``[[upstream.same_model]]``: another upstream that serves the models of the one above."""

    upstream: str
    model: NonEmpty | UnsetType = UNSET


# Not infinity, and not so few that the next call would be sent in years.
_PerMinute = Annotated[float, Meta(ge=0.001, le=1e12)]


class _LimitTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """``[[upstream.limits]]``: rate limits that the operator knows."""

    models: Annotated[list[NonEmpty], Meta(min_length=1)] | UnsetType = UNSET
    requests_per_minute: _PerMinute | UnsetType = UNSET
    tokens_per_minute: _PerMinute | UnsetType = UNSET


class _UpstreamTable(Struct, forbid_unknown_fields=True, kw_only=True):
    name: Name | UnsetType = UNSET
    provider: str = GENERIC.name
    base_url: str | UnsetType = UNSET
    key_env: NonEmpty | UnsetType = UNSET
    canary_key_env: NonEmpty | UnsetType = UNSET
    models: Annotated[list[NonEmpty], Meta(min_length=1)] | UnsetType = UNSET
    same_model: list[_SameModelTable] = []
    limits: list[_LimitTable] = []
    # These replace --upstream-proxy, --upstream-ca and so on for this upstream; "none" removes them.
    proxy: NonEmpty | UnsetType = UNSET
    ca: NonEmpty | UnsetType = UNSET
    cert: NonEmpty | UnsetType = UNSET
    cert_key: NonEmpty | UnsetType = UNSET


def parse_upstreams(
    tables: Iterable[Any],
    rows: Mapping[str, Provider],
    environment: Mapping[str, str],
    where: str,
    *,
    egress: Egress = DIRECT,
) -> list[UpstreamSetting]:
    """The upstreams of the ``[[upstream]]`` tables, in the file's order.

    ``environment`` has the variables that ``key_env`` and ``canary_key_env`` name; ``egress`` applies to a table that
    sets none of its own. Raises `ConfigError`.
    """
    upstreams: dict[str, UpstreamSetting] = {}
    for number, value in enumerate(tables, start=1):
        table = read_table(value, _UpstreamTable, f"{where}: [[upstream]] {number}")
        setting = _upstream(table, rows, where)
        if isinstance(table.key_env, str):
            key = read_secret(table.key_env, environment, f"{where}: [[upstream]] key_env")
            setting = replace(setting, key=key)
        if isinstance(table.canary_key_env, str):
            key = read_secret(table.canary_key_env, environment, f"{where}: [[upstream]] canary_key_env")
            setting = replace(setting, canary_key=key)
        setting = replace(setting, egress=_egress(table, egress, f"{where}: [[upstream]] {setting.name}"))
        if (table.ca is not UNSET or table.cert is not UNSET) and setting.egress.has_files and not setting.uses_tls:
            raise ConfigError(f"{where}: [[upstream]] {setting.name}: ca and cert need an https:// base_url")
        if setting.name in upstreams:
            raise ConfigError(f"{where}: two [[upstream]] tables are named {setting.name!r}; rename one")
        upstreams[setting.name] = setting
    _require_known_fallbacks(upstreams, where)
    _require_one_default(upstreams.values(), where)
    return list(upstreams.values())


def _require_known_fallbacks(upstreams: Mapping[str, UpstreamSetting], where: str) -> None:
    for name, setting in upstreams.items():
        others = [other for other in upstreams if other != name]
        for fallback in setting.same_model:
            if fallback.upstream not in others:
                raise ConfigError(
                    f"{where}: upstream {name!r} has same_model {fallback.upstream!r}, which is not the name of another"
                    f" [[upstream]] table; accepted: {', '.join(others) or 'none yet'}"
                )


def _require_one_default(upstreams: Iterable[UpstreamSetting], where: str) -> None:
    defaults = [setting.name for setting in upstreams if not setting.models]
    if len(defaults) > 1:
        raise ConfigError(
            f"{where}: upstreams {', '.join(defaults)} have no models; only the default upstream may have none"
        )


def _upstream(table: _UpstreamTable, rows: Mapping[str, Provider], where: str) -> UpstreamSetting:
    if table.provider not in rows:
        raise ConfigError(
            f"{where}: [[upstream]] provider {table.provider!r} is unknown; {suggestion(table.provider, rows)}"
        )
    row = rows[table.provider]
    text = row.base_url if table.base_url is UNSET else table.base_url
    if text is None:
        raise ConfigError(f"{where}: [[upstream]] with provider {row.name!r} needs a base_url, as https://host/path")
    setting = parse_base_url(text, row, f"{where}: [[upstream]]")
    name = table.name if isinstance(table.name, str) else setting.name if row.name == GENERIC.name else row.name
    models = () if table.models is UNSET else tuple(table.models)
    others = tuple(
        SameModel(upstream=other.upstream, model=None if other.model is UNSET else other.model)
        for other in table.same_model
    )
    renamed = [other.model for other in others if other.model is not None]
    if renamed and (len(models) != 1 or not _is_exact_name(models[0])):
        raise ConfigError(
            f"{where}: upstream {name!r} has the same model as {renamed[0]!r}, so its models must be one exact name"
        )
    limits = tuple(_rate_limit(limit, f"{where}: [[upstream]] {name}: limits") for limit in table.limits)
    return replace(setting, name=name, models=models, same_model=others, limits=limits)


def _rate_limit(table: _LimitTable, where: str) -> RateLimit:
    requests, tokens = (
        None if value is UNSET else value for value in (table.requests_per_minute, table.tokens_per_minute)
    )
    if requests is None and tokens is None:
        raise ConfigError(f"{where}: needs requests_per_minute, tokens_per_minute or both")
    models = ("*",) if table.models is UNSET else tuple(table.models)
    return RateLimit(models=models, requests_per_minute=requests, tokens_per_minute=tokens)


def _egress(table: _UpstreamTable, default: Egress, where: str) -> Egress:
    def own(key: str, parse: Callable[[str], Any], inherited: Any) -> Any:
        text = getattr(table, key)
        try:
            return inherited if text is UNSET else parse(text)
        except ConfigError as error:
            raise ConfigError(f"{where}: {key}: {error}") from error

    if table.cert is UNSET and table.cert_key is not UNSET:
        raise ConfigError(f"{where}: cert_key needs cert")
    return Egress(
        proxy=own("proxy", parse_proxy, default.proxy),
        ca=own("ca", parse_file, default.ca),
        cert=own("cert", parse_file, default.cert),
        # A key belongs to its certificate.
        cert_key=own("cert_key", parse_file, default.cert_key if table.cert is UNSET else None),
    )


def _is_exact_name(pattern: str) -> bool:
    return not set("*?[") & set(pattern)
