"""The fields of a request body besides ``model`` and ``input`` (pure).

A provider's row says what each field means: it selects the output encoding, is part of the key, is neutral, or can make
an item's vector depend on the other items.
"""

from enum import StrEnum
from typing import Any, NamedTuple

from proxy.labels import BypassReason
from proxy.protocol.bypass import Bypass
from proxy.protocol.json_numbers import is_exact
from proxy.protocol.provider import Provider
from proxy.protocol.vectors import DType, Encoding

# The integer types that a request can name. `binary` packs eight dimensions into each number.
_PACKED = {
    "int8": DType.INT8_PACKED,
    "binary": DType.INT8_PACKED,
    "uint8": DType.UINT8_PACKED,
    "ubinary": DType.UINT8_PACKED,
}


class FieldClass(StrEnum):
    """What a provider's row says of a field of the body, highest precedence first. `MEANINGS` explains each."""

    MODEL = "model"
    INPUT = "input"
    STREAM = "stream"
    NEUTRAL = "neutral"
    FIXED = "fixed"
    ENCODING = "encoding"
    KEY = "key"
    CROSS_ITEM = "cross-item"
    UNKNOWN = "unknown"


def class_of(name: str, provider: Provider) -> FieldClass:
    if name in _CLASSES_BY_NAME:
        return _CLASSES_BY_NAME[name]
    classes = (
        (FieldClass.NEUTRAL, provider.neutral),
        (FieldClass.FIXED, provider.fixed),
        (FieldClass.ENCODING, provider.encoding),
        (FieldClass.KEY, provider.key),
        (FieldClass.CROSS_ITEM, provider.cross_item),
    )
    return next((of for of, names in classes if name in names), FieldClass.UNKNOWN)


# ``{}`` stands for the value in the row that has no such effect.
MEANINGS = {
    FieldClass.MODEL: "names what computes the vector",
    FieldClass.INPUT: "the items: each is in the key of its own entry",
    FieldClass.STREAM: "asks for a stream, which is not cached, unless it is false",
    FieldClass.NEUTRAL: "does not change the vector",
    FieldClass.FIXED: "selects how vectors are written; the proxy can write {} only",
    FieldClass.ENCODING: "selects how vectors are written; an entry serves every encoding, but integer types are other"
    " numbers, so they are in the key",
    FieldClass.KEY: "changes the vector of each item alike",
    FieldClass.CROSS_ITEM: "makes a vector depend on the other items, or makes several of an item, unless it is {}",
    FieldClass.UNKNOWN: "the row does not describe it",
}
_CLASSES_BY_NAME = {"model": FieldClass.MODEL, "input": FieldClass.INPUT, "stream": FieldClass.STREAM}


class OutputFormat(NamedTuple):
    """How the response writes its vectors. ``packed`` is the integer type that the request names, if any."""

    encoding: Encoding = Encoding.FLOAT
    packed: DType | None = None


_DEFAULT_FORMAT = OutputFormat()


def parse_output_format(fields: dict[str, Any], provider: Provider) -> OutputFormat:
    """What the fields of class encoding ask for; null is the same as absent. Raises `Bypass`."""
    if provider.encoding.keys().isdisjoint(fields) and not provider.fixed:
        return _DEFAULT_FORMAT
    output = _DEFAULT_FORMAT
    for name, accepted in provider.encoding.items():
        value = fields.get(name)
        if value is None:
            continue
        if type(value) is not str or value not in accepted:
            raise Bypass(BypassReason.ENCODING, name)
        if value == "base64":
            output = output._replace(encoding=Encoding.BASE64)
        elif value != "float":
            output = output._replace(packed=_PACKED[value])
    for name, value in provider.fixed.items():
        if fields.get(name) not in (None, value):
            raise Bypass(BypassReason.ENCODING, name)
    if output.packed is not None and output.encoding is Encoding.BASE64 and not provider.packs_base64:
        raise Bypass(BypassReason.ENCODING)
    return output


def forbid_two_encodings(fields: dict[str, Any], provider: Provider) -> None:
    """Raises `Bypass` for two fields that select the same property of the output: providers do not document which of
    them wins."""
    if len(provider.encoding) > 1:
        chosen = [values for name, values in provider.encoding.items() if fields.get(name) is not None]
        if len(chosen) > len(set(chosen)):
            raise Bypass(BypassReason.DUPLICATE_KEY)


def parse_parameters(fields: dict[str, Any], provider: Provider) -> tuple[OutputFormat, dict[str, Any]]:
    """The output format, and the fields that change the vector of each item, as given. Raises `Bypass`."""
    output = parse_output_format(fields, provider)
    parameters = {}
    for name, value in fields.items():
        if name in {"model", "input"} or is_neutral(name, value, provider):
            continue
        if name in provider.encoding:
            if output.packed is not None and value in _PACKED:
                parameters[name] = value
        elif name in provider.key:
            _require_scalar(name, value)
            parameters[name] = value
        else:
            require_harmless(name, value, provider)
    return output, parameters


def doubt_about(name: str, value: Any, provider: Provider) -> Bypass | None:
    """Why a field keeps its request from being keyed item by item, whatever the other fields; None if it does not."""
    try:
        parse_parameters({name: value}, provider)
    except Bypass as bypass:
        return bypass
    return None


def parse_whole_parameters(
    fields: dict[str, Any], provider: Provider, *, may_rewrite: bool
) -> tuple[OutputFormat, dict[str, Any]]:
    """`parse_parameters` for a request that is keyed by its whole body. Its parameters are all fields, ``input``
    included, that are not known to be neutral. ``may_rewrite``: a field may change how vectors are written, so the
    encoding is a parameter too. Raises `Bypass`.
    """
    output, parameters = parse_output_format(fields, provider), {}
    for name, value in fields.items():
        is_model = name == "model" and type(value) is str  # any other value is a parameter like others
        if is_model or name in provider.encoding or is_neutral(name, value, provider):
            continue
        if not is_exact(value):
            raise Bypass(BypassReason.INEXACT_NUMBER, name)
        parameters[name] = value
    if output.packed is not None or may_rewrite:
        parameters |= {name: fields[name] for name in provider.encoding if fields.get(name) not in (None, "float")}
    return output, parameters


def is_neutral(name: str, value: Any, provider: Provider) -> bool:
    """Whether a field changes nothing about a vector. Raises `Bypass` for a stream.

    OpenAI documents ``stream`` for its other routes; an SDK may send its default here.
    """
    if name == "stream":
        if value:
            raise Bypass(BypassReason.STREAM, name)
        return value is None or value is False
    return name in provider.neutral or (name in provider.fixed and value in (None, provider.fixed[name]))


def find_undescribed(fields: dict[str, Any], provider: Provider) -> tuple[bool, bool]:
    """Whether there are fields that ``provider`` does not describe, and whether any field may change how vectors are
    written."""
    reasons = set()
    for name, value in fields.items():
        if name in {"model", "input"} or name in provider.key or name in provider.encoding:
            continue
        if not is_neutral(name, value, provider):
            try:
                require_harmless(name, value, provider)
            except Bypass as bypass:
                reasons.add(bypass.reason)
    return BypassReason.UNKNOWN_FIELD in reasons, bool(reasons)


def require_harmless(name: str, value: Any, provider: Provider) -> None:
    """Raises `Bypass` for a field by which an item's vector can depend on the other items, or whose meaning is
    unknown."""
    if name not in provider.cross_item:
        raise Bypass(BypassReason.UNKNOWN_FIELD, name)
    harmless = provider.cross_item[name]
    if not (type(value) is type(harmless) and value == harmless) and not (value is None and provider.accepts_null):
        raise Bypass(BypassReason.CROSS_ITEM, name)


def _require_scalar(name: str, value: Any) -> None:
    if type(value) is list:
        # A list may apply to the items by position (NVIDIA's `modality`), so it can't be part of each item's key.
        raise Bypass(BypassReason.LIST_PARAMETER, name)
    if not is_exact(value):
        raise Bypass(BypassReason.INEXACT_NUMBER, name)
