"""``[providers.NAME]`` of the configuration file: rows added to the table of providers, or changed in it (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from proxy.config.header_names import parse_neutral_headers
from proxy.config.suggestion import suggestion
from proxy.config.tables import Name, Output, read_table
from proxy.config.upstream_urls import parse_base_url
from proxy.errors import ConfigError
from proxy.protocol.provider import InputFormat, Limits, Provider
from proxy.protocol.providers import GENERIC, PROVIDERS

_Field = Annotated[str, Meta(min_length=1, max_length=128)]
_Fields = Annotated[list[_Field], Meta(max_length=256)]
_Count = Annotated[int, Meta(ge=1)]
_Path = Annotated[str, Meta(pattern=r"^/[!-~]*$")]
# The name of a header field (RFC 9110 §5.6.2), and what precedes the key in its value.
_Auth = Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+(: [!-~]+)?$")]
_ENCODING_FIELDS = frozenset({"encoding_format", "embedding_type", "output_dtype", "embed_dtype", "endianness"})
_RESERVED_FIELDS = frozenset({"model", "input"})


class _ProviderTable(Struct, forbid_unknown_fields=True, kw_only=True):
    like: str | UnsetType = UNSET  # the row to start from; default: the row of this name, or `generic`
    base_url: str | UnsetType = UNSET
    path: _Path | UnsetType = UNSET
    auth: _Auth | UnsetType = UNSET
    inputs: list[InputFormat] | UnsetType = UNSET
    key: _Fields = []
    neutral: _Fields = []
    neutral_headers: _Fields = []
    cross_item: dict[_Field, Any] = {}
    encoding: dict[_Field, list[Output]] = {}
    packs_base64: bool | UnsetType = UNSET
    max_items: _Count | UnsetType = UNSET
    max_tokens: _Count | UnsetType = UNSET
    max_bytes: _Count | UnsetType = UNSET
    needs_model: bool | UnsetType = UNSET
    fused_models: list[str] = []
    multi_vector_models: list[str] = []

    @property
    def listed(self) -> list[str]:
        """The fields that the table puts into a class."""
        return [*self.key, *self.neutral, *self.cross_item, *self.encoding]


def parse_providers(tables: Mapping[str, Any], where: str) -> Mapping[str, Provider]:
    """The table of providers, with the changes of ``[providers]``. Raises `ConfigError`."""
    rows = dict(PROVIDERS)
    for name, value in read_table(tables, dict[Name, Any], f"{where}: [providers]").items():
        own = f"{where}: [providers.{name}]"
        table = read_table(value, _ProviderTable, own)
        start = table.like if isinstance(table.like, str) else name if name in rows else GENERIC.name
        if name == "demo":
            raise ConfigError(f"{own} is built in; choose another name")
        if start not in rows:
            raise ConfigError(f"{own} like = {start!r} is not a provider; {suggestion(start, rows)}")
        _forbid_ambiguous_fields(table, own)
        _forbid_wrong_classes(rows[start], table, own)
        rows[name] = _changed(rows[start], name, table, own)
    return rows


def _forbid_ambiguous_fields(table: _ProviderTable, where: str) -> None:
    listed = table.listed
    if twice := {field for field in listed if listed.count(field) > 1}:
        raise ConfigError(f"{where} {min(twice)!r} is in two classes; list it once")
    if reserved := _RESERVED_FIELDS.intersection(listed):
        raise ConfigError(f"{where} {min(reserved)!r} is reserved; remove it")
    if encoding := _ENCODING_FIELDS.intersection((*table.key, *table.neutral, *table.cross_item)):
        raise ConfigError(
            f"{where} {min(encoding)!r} selects the encoding of vectors;"
            f' use encoding = {{ {min(encoding)} = ["float", "int8"] }} with the values that it takes'
        )


def _forbid_wrong_classes(row: Provider, table: _ProviderTable, where: str) -> None:
    """Refuse ``neutral`` fields that affect vectors, and ``key`` fields that make items depend on each other."""
    affecting: frozenset[str] = row.key | row.cross_item.keys() | row.encoding.keys() | row.fixed.keys()
    if wrong := affecting.intersection(table.neutral):
        raise ConfigError(
            f"{where} {min(wrong)!r} is known to affect the response, so it can't be neutral;"
            " to change that, add a new row whose `like` does not know the field"
        )
    if tied := row.cross_item.keys() & set(table.key):
        raise ConfigError(f"{where} {min(tied)!r} is known to make items depend on each other, so it can't be a key")


def _changed(row: Provider, name: str, table: _ProviderTable, where: str) -> Provider:
    # A listed field leaves the class that it has in the row.
    moved = frozenset(table.listed)
    encoding = {field: values for field, values in row.encoding.items() if field not in moved}
    changes: dict[str, Any] = {
        "name": name,
        "base_url": row.base_url if name == row.name else None,  # another API has another address
        "key": (row.key - moved) | frozenset(table.key),
        "neutral": (row.neutral - moved) | frozenset(table.neutral),
        "neutral_headers": row.neutral_headers | _header_names(table.neutral_headers, where),
        "encoding": encoding | {field: frozenset(values) for field, values in table.encoding.items()},
        "cross_item": {k: v for k, v in row.cross_item.items() if k not in moved} | table.cross_item,
        "fixed": {k: v for k, v in row.fixed.items() if k not in moved},
        "limits": Limits(
            row.limits.items if table.max_items is UNSET else table.max_items,
            row.limits.tokens if table.max_tokens is UNSET else table.max_tokens,
            row.limits.bytes if table.max_bytes is UNSET else table.max_bytes,
        ),
    }
    for attribute in ("path", "auth", "needs_model", "packs_base64"):
        if (value := getattr(table, attribute)) is not UNSET:
            changes[attribute] = value
    if table.base_url is not UNSET:
        changes["base_url"] = parse_base_url(table.base_url, row, where).base_url
    if table.inputs is not UNSET:
        changes["inputs"] = frozenset(table.inputs)
    for attribute in ("fused_models", "multi_vector_models"):
        changes[attribute] = tuple(dict.fromkeys((*getattr(row, attribute), *getattr(table, attribute))))
    return replace(row, **changes)


def _header_names(names: Sequence[str], where: str) -> frozenset[str]:
    try:
        return frozenset().union(*map(parse_neutral_headers, names))
    except ConfigError as error:
        raise ConfigError(f"{where} neutral_headers: {error}") from error
