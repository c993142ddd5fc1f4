"""Names of models as operators write them (pure)."""

from proxy.errors import ConfigError


def parse_model(text: str) -> str:
    """Raises `ConfigError`."""
    if not text.strip():
        raise ConfigError("the name is empty; accepted: the model as clients name it")
    return text
