"""Secrets in environment variables: a setting names the variable and never has the secret (pure)."""

import re
from collections.abc import Mapping

from proxy.errors import ConfigError

_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_MIN_KEY = 32  # characters


def read_secret(name: str, environment: Mapping[str, str], where: str) -> str:
    """The secret in variable ``name``, which the setting ``where`` names. Raises `ConfigError`, without the secret."""
    secret = environment.get(name, "").strip()
    if not secret and not _VARIABLE.fullmatch(name):
        # The operator may have given the secret itself in place of the variable's name.
        raise ConfigError(f"{where}: the environment has no variable of that name; accepted: a name as API_KEY")
    if not secret:
        raise ConfigError(f"{where}: the environment variable {name} is not set, or empty")
    if not secret.isascii() or not secret.isprintable():
        raise ConfigError(f"{where}: {name} has characters that are not allowed in a header")
    return secret


def read_mac_key(name: str, environment: Mapping[str, str], option: str) -> bytes:
    """The secret of ``option``, by which the proxy makes MACs. Raises `ConfigError`."""
    secret = read_secret(name, environment, option)
    if len(secret) < _MIN_KEY:
        raise ConfigError(f"{option}: {name} has fewer than {_MIN_KEY} characters; make one: openssl rand -hex 32")
    return secret.encode()
