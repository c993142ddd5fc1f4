"""The tables of the configuration file: several upstreams, and rows of the table of providers (pure)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from proxy.config.parsing import meant, parse_file, parse_neutral_headers, parse_upstream
from proxy.config.settings import SameModel, UpstreamSetting
from proxy.errors import ConfigError
from proxy.protocol.providers import GENERIC, PROVIDERS, InputFormat, Limits, Provider
from proxy.upstream.egress import DIRECT, Egress, parse_proxy

_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Field = Annotated[str, Meta(min_length=1, max_length=128)]
_Fields = Annotated[list[_Field], Meta(max_length=256)]
_Count = Annotated[int, Meta(ge=1)]
_Path = Annotated[str, Meta(pattern=r"^/[!-~]*$")]
_Output = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
_WRITING = frozenset({"encoding_format", "embedding_type", "output_dtype", "embed_dtype", "endianness"})
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_OWN_FIELDS = frozenset({"model", "input"})


class _ProviderTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """``[providers.NAME]``: a new row, or changes to one that is there."""

    like: str | UnsetType = UNSET  # the row to start from; its own, or `generic`
    base_url: str | UnsetType = UNSET
    path: _Path | UnsetType = UNSET
    auth: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    inputs: list[InputFormat] | UnsetType = UNSET
    key: _Fields = []
    neutral: _Fields = []
    neutral_headers: _Fields = []
    cross_item: dict[_Field, Any] = {}
    encoding: dict[_Field, list[_Output]] = {}
    packs_base64: bool | UnsetType = UNSET
    max_items: _Count | UnsetType = UNSET
    max_tokens: _Count | UnsetType = UNSET
    max_bytes: _Count | UnsetType = UNSET
    needs_model: bool | UnsetType = UNSET
    fused_models: list[str] = []
    multi_vector_models: list[str] = []


class _SameModelTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """``[[upstream.same_model]]``: who else serves the models of the upstream above."""

    upstream: str
    model: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET


class _UpstreamTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """``[[upstream]]``."""

    name: _Name | UnsetType = UNSET
    provider: str = GENERIC.name
    base_url: str | UnsetType = UNSET
    key_env: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    models: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)] | UnsetType = UNSET
    same_model: list[_SameModelTable] = []
    # In place of what --upstream-proxy and so on say for all upstreams; "none" undoes that.
    proxy: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    ca: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    cert: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET
    cert_key: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET


def providers(tables: Any, where: str) -> Mapping[str, Provider]:
    """The table of providers with the rows of ``[providers]`` in it. Raises `ConfigError`."""
    rows = dict(PROVIDERS)
    for name, given in _read(tables, dict[_Name, Any], f"{where}: [providers]").items():
        table = _read(given, _ProviderTable, f"{where}: [providers.{name}]")
        start = table.like if isinstance(table.like, str) else name if name in rows else GENERIC.name
        if name == "demo":
            raise ConfigError(f"{where}: [providers.demo] is built in; choose another name")
        if start not in rows:
            raise ConfigError(f"{where}: [providers.{name}] like = {start!r} is no provider; {meant(start, rows)}")
        rows[name] = _changed(rows[start], name, table, where)
    return rows


def _changed(row: Provider, name: str, table: _ProviderTable, where: str) -> Provider:
    listed = [*table.key, *table.neutral, *table.cross_item, *table.encoding]
    twice = {field for field in listed if listed.count(field) > 1}
    if twice or _OWN_FIELDS.intersection(listed):
        wrong = min(twice or _OWN_FIELDS.intersection(listed))
        why = "stands in two classes; list it once" if twice else "has a meaning of its own; leave it out"
        raise ConfigError(f"{where}: [providers.{name}] {wrong!r} {why}")
    if written := _WRITING.intersection((*table.key, *table.neutral, *table.cross_item)):
        raise ConfigError(
            f"{where}: [providers.{name}] {min(written)!r} chooses how vectors are written;"
            f' say encoding = {{ {min(written)} = ["float", "int8"] }} with the values that it takes'
        )
    acting = row.key | row.cross_item.keys() | row.encoding.keys() | row.fixed.keys()
    if acts := acting.intersection(table.neutral):
        raise ConfigError(
            f"{where}: [providers.{name}] {min(acts)!r} is known to change what is answered, so it can't be neutral;"
            " with a row of its own, like another that does not know it, it could"
        )
    if ties := row.cross_item.keys() & set(table.key):
        raise ConfigError(
            f"{where}: [providers.{name}] {min(ties)!r} is known to tie items to each other, so it can't be a key"
        )
    # What the operator lists counts, whatever class the field was in.
    moved = frozenset(listed)
    changes: dict[str, Any] = {
        "name": name,
        "base_url": row.base_url if name == row.name else None,  # another API has another address
        "key": (row.key - moved) | frozenset(table.key),
        "neutral": (row.neutral - moved) | frozenset(table.neutral),
        "neutral_headers": row.neutral_headers | _header_names(table.neutral_headers, f"{where}: [providers.{name}]"),
        "encoding": {name: values for name, values in row.encoding.items() if name not in moved}
        | {name: frozenset(values) for name, values in table.encoding.items()},
        "cross_item": {k: v for k, v in row.cross_item.items() if k not in moved} | table.cross_item,
        "fixed": {k: v for k, v in row.fixed.items() if k not in moved},
        "limits": Limits(
            row.limits.items if table.max_items is UNSET else table.max_items,
            row.limits.tokens if table.max_tokens is UNSET else table.max_tokens,
            row.limits.bytes if table.max_bytes is UNSET else table.max_bytes,
        ),
    }
    for field in ("path", "auth", "needs_model", "packs_base64"):
        if (value := getattr(table, field)) is not UNSET:
            changes[field] = value
    if table.base_url is not UNSET:
        changes["base_url"] = _base_url(table.base_url, row, f"{where}: [providers.{name}]").base_url
    if table.inputs is not UNSET:
        changes["inputs"] = frozenset(table.inputs)
    for field in ("fused_models", "multi_vector_models"):
        changes[field] = tuple(dict.fromkeys((*getattr(row, field), *getattr(table, field))))
    return replace(row, **changes)


def prices(table: Any, where: str) -> dict[str, float]:
    """``[prices]``: money per million tokens, by patterns of model names, in order. Raises `ConfigError`."""
    for name, price in table.items():
        if type(price) not in {int, float} or not price >= 0:
            hint = "; quote names that have dots" if type(price) is dict else ""
            raise ConfigError(f"{where}: [prices] {name!r}: accepted: money per million tokens, as 0.02{hint}")
    return {name: float(price) for name, price in table.items()}


def upstreams(
    tables: Any,
    rows: Mapping[str, Provider],
    environment: Mapping[str, str],
    where: str,
    *,
    egress: Egress = DIRECT,
) -> list[UpstreamSetting]:
    """What the ``[[upstream]]`` tables say, in their order; ``environment`` has the keys that they name, and ``egress``
    is for those that say nothing of theirs.

    Raises `ConfigError`.
    """
    found: dict[str, UpstreamSetting] = {}
    for number, given in enumerate(tables, start=1):
        table = _read(given, _UpstreamTable, f"{where}: [[upstream]] {number}")
        setting = _upstream(table, rows, where)
        if isinstance(table.key_env, str):
            setting = replace(setting, key=secret(table.key_env, environment, f"{where}: [[upstream]] key_env"))
        setting = replace(setting, egress=_egress(table, egress, f"{where}: [[upstream]] {setting.name}"))
        if (table.ca is not UNSET or table.cert is not UNSET) and setting.egress.has_files and not setting.uses_tls:
            raise ConfigError(f"{where}: [[upstream]] {setting.name}: ca and cert go with an https:// base_url")
        if setting.name in found:
            raise ConfigError(f"{where}: two [[upstream]] tables are named {setting.name!r}; give one another name")
        found[setting.name] = setting
    for setting in found.values():
        for other in setting.same_model:
            if other.upstream not in found or other.upstream == setting.name:
                raise ConfigError(
                    f"{where}: upstream {setting.name!r} has same_model {other.upstream!r}, which is no other"
                    f" [[upstream]] table; {_accepted([name for name in found if name != setting.name])}"
                )
    defaults = [setting.name for setting in found.values() if not setting.models]
    if len(defaults) > 1:
        raise ConfigError(
            f"{where}: upstreams {', '.join(defaults)} have no models; only one, which gets all the rest, may lack them"
        )
    return list(found.values())


def _upstream(table: _UpstreamTable, rows: Mapping[str, Provider], where: str) -> UpstreamSetting:
    if table.provider not in rows:
        raise ConfigError(
            f"{where}: [[upstream]] provider {table.provider!r} is unknown; {meant(table.provider, rows)}"
        )
    row = rows[table.provider]
    text = row.base_url if table.base_url is UNSET else table.base_url
    if text is None:
        raise ConfigError(f"{where}: [[upstream]] of provider {row.name!r} needs a base_url, as https://host/path")
    setting = _base_url(text, row, f"{where}: [[upstream]]")
    name = table.name if isinstance(table.name, str) else setting.name if row.name == GENERIC.name else row.name
    models = () if table.models is UNSET else tuple(table.models)
    others = tuple(
        SameModel(upstream=other.upstream, model=None if other.model is UNSET else other.model)
        for other in table.same_model
    )
    renamed = [other.model for other in others if other.model is not None]
    if renamed and (len(models) != 1 or not _is_one_name(models[0])):
        raise ConfigError(
            f"{where}: upstream {name!r} is the same model as {renamed[0]!r}, so its models must be just the one name"
        )
    return replace(setting, name=name, models=models, same_model=others)


def _egress(table: _UpstreamTable, default: Egress, where: str) -> Egress:
    def own(key: str, parse: Callable[[str], Any], otherwise: Any) -> Any:
        text = getattr(table, key)
        try:
            return otherwise if text is UNSET else parse(text)
        except ConfigError as error:
            raise ConfigError(f"{where}: {key}: {error}") from error

    if table.cert is UNSET and table.cert_key is not UNSET:
        raise ConfigError(f"{where}: cert_key goes with cert")
    return Egress(
        proxy=own("proxy", parse_proxy, default.proxy),
        ca=own("ca", parse_file, default.ca),
        cert=own("cert", parse_file, default.cert),
        # A key belongs to its certificate.
        cert_key=own("cert_key", parse_file, default.cert_key if table.cert is UNSET else None),
    )


def _header_names(names: Sequence[str], where: str) -> frozenset[str]:
    try:
        return frozenset().union(*map(parse_neutral_headers, names))
    except ConfigError as error:
        raise ConfigError(f"{where} neutral_headers: {error}") from error


def _base_url(text: str, row: Provider, where: str) -> UpstreamSetting:
    try:
        return parse_upstream(text, row=row, rows={})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def secret(name: str, environment: Mapping[str, str], where: str) -> str:
    """The value of a variable that holds a secret. Raises `ConfigError`, which never shows it."""
    value = environment.get(name, "").strip()
    if not value and not _VARIABLE.fullmatch(name):
        # It may be the secret itself.
        raise ConfigError(f"{where}: the environment has no variable of the name given; accepted: a name as API_KEY")
    if not value:
        raise ConfigError(f"{where}: the environment has no {name}, or an empty one")
    if not value.isascii() or not value.isprintable():
        raise ConfigError(f"{where}: {name} holds what can't be sent in a header")
    return value


def _is_one_name(pattern: str) -> bool:
    return not set("*?[") & set(pattern)


def _read(given: Any, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}{_hint(str(error), kind)}") from None


def _hint(error: str, kind: Any) -> str:
    """What would be accepted, where the error does not say it."""
    if "unknown field" in error:
        return f"; {_accepted([field.encode_name for field in msgspec.structs.fields(kind)])}"
    if "Invalid enum value" in error:
        values = [form.value for form in InputFormat] if ".inputs" in error else get_args(_Output)
        return f"; {_accepted(values)}"
    return ""


def _accepted(names: Sequence[str] | Mapping[str, Any]) -> str:
    return f"accepted: {', '.join(names) or 'none yet'}"
