"""Names of models as operators write them (pure)."""

from proxy.errors import ConfigError


def parse_model(text: str) -> str:
    """Raises `ConfigError`."""
    if not text.strip():
        raise ConfigError("the name is empty; accepted: the model as clients name it")
    if not is_utf8(text):
        raise ConfigError(f"{text!r} is not UTF-8; accepted: the model as clients name it")
    return text


def is_utf8(text: str) -> bool:
    """Whether an argument of the command line had only bytes that are UTF-8. Python keeps the others as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
