"""Tables of the configuration file as typed values; an error names the table (pure)."""

from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from proxy.errors import ConfigError
from proxy.protocol.provider import InputFormat

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
NonEmpty = Annotated[str, Meta(min_length=1)]
Output = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]


def read_table(value: Any, kind: Any, where: str) -> Any:
    """``value``, as TOML has it, as a ``kind``. Raises `ConfigError`, which begins with ``where``."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}{_hint(str(error), kind)}") from None


def _hint(error: str, kind: Any) -> str:
    """The accepted values, where msgspec's error does not list them."""
    if "unknown field" in error:
        return f"; accepted: {', '.join(field.encode_name for field in msgspec.structs.fields(kind))}"
    if "Invalid enum value" in error:
        values = [form.value for form in InputFormat] if ".inputs" in error else get_args(Output)
        return f"; accepted: {', '.join(values)}"
    return ""
