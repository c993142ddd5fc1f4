"""Dashboards as Grafana's own types: read with its Foundation SDK, which is generated from the schemas of one version
of Grafana, https://grafana.github.io/grafana-foundation-sdk/.

The SDK passes over names that it does not know, and takes any value for one of an enumeration; both are found here.
"""

import json
from collections.abc import Iterator
from enum import Enum
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.cog.runtime import panelcfg_config
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

register_default_plugins()

_UNITS = {unit for name, unit in vars(units).items() if name[0].isupper()}
# Grafana writes it for its own variable editor; the schemas don't have it.
_NOT_IN_THE_SCHEMAS = {"definition"}


def complaints(written: dict[str, Any]) -> list[str]:
    """What Grafana would pass over or not understand, by its path in the JSON."""
    dashboard = Dashboard.from_json(written)
    read = json.loads(json.dumps(dashboard, cls=JSONEncoder))
    return [*_unknown(written, read, ""), *_mistyped(dashboard, Dashboard, ""), *_free_texts(written)]


def _free_texts(written: dict[str, Any]) -> Iterator[str]:
    """What the schemas take any text for, and Grafana doesn't."""
    for panel in written["panels"]:
        kind = panel["type"]
        if kind != "row" and panelcfg_config(kind) is None:
            yield f"{kind} is no panel"
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "none")
        if unit not in _UNITS:
            yield f"{unit} is no unit"


def _unknown(written: Any, read: Any, where: str) -> Iterator[str]:
    """What was written and was not read."""
    match written, read:
        case dict(), dict():
            for name in written.keys() - _NOT_IN_THE_SCHEMAS:
                if name not in read:
                    yield f"{where}/{name} is unknown"
                else:
                    yield from _unknown(written[name], read[name], f"{where}/{name}")
        case list(), list() if len(written) == len(read):
            for place, (one, other) in enumerate(zip(written, read, strict=True)):
                yield from _unknown(one, other, f"{where}/{place}")
        case _ if written != read:
            yield f"{where} is read as {read!r}"


def _mistyped(value: Any, hint: Any, where: str) -> Iterator[str]:
    """Where a value is not of the type that its class declares."""
    if (parts := _parts(value, hint)) is not None:
        for name, part, declared in parts:
            yield from _mistyped(part, declared, f"{where}/{name}")
    elif get_origin(hint) is Union:
        options = [option for option in get_args(hint) if (option is NoneType) == (value is None)]
        found = [list(_mistyped(value, option, where)) for option in options]
        if not found or all(found):
            yield from max(found, key=len, default=[f"{where} is missing"])
    elif hasattr(hint, "from_json") and isinstance(value, dict):
        yield from _mistyped(hint.from_json(value), hint, where)
    elif not _is(value, hint):
        yield f"{where} is {value!r} and no {hint}"


def _parts(value: Any, hint: Any) -> list[tuple[str, Any, Any]] | None:
    """The name, the value and the declared type of each, of what has parts."""
    if hasattr(value, "to_json"):
        return [(name, getattr(value, name), declared) for name, declared in get_type_hints(type(value)).items()]
    if get_origin(hint) is list and isinstance(value, list):
        return [(str(place), each, get_args(hint)[0]) for place, each in enumerate(value)]
    if get_origin(hint) is dict and isinstance(value, dict):
        return [(name, each, get_args(hint)[1]) for name, each in value.items()]
    return None


def _is(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint in {Any, object, NoneType, None}:
        return hint in {Any, object} or value is None
    if not isinstance(hint, type):
        return False
    if issubclass(hint, Enum):
        return value in [member.value for member in hint]
    if hint in {int, float}:
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)
