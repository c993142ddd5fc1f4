"""The environment: variables that start with the proxy's prefix and are none of its options."""

import os
import re
from collections.abc import Collection

import click

from proxy.cli.options.option import ENV_PREFIX
from proxy.config.suggestion import suggestion

# Kubernetes puts the address of every Service into every Pod's environment; if its name begins with `embedding-proxy`,
# as that of `embedding-proxy-redis`, these start with our prefix. Some have the names of --port and --admin-port
# (https://kubernetes.io/docs/tutorials/services/connect-applications-service/).
_OF_SERVICE = re.compile(rf"{ENV_PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_ADDRESS_OF_SERVICE = re.compile(rf"{ENV_PREFIX}(\w+_)?PORT=(tcp|udp|sctp)://.*")


def drop_kubernetes_service_env() -> None:
    """Remove Kubernetes' addresses of Services."""
    for name, value in list(os.environ.items()):
        if _OF_SERVICE.fullmatch(name) or _ADDRESS_OF_SERVICE.fullmatch(f"{name}={value}"):
            del os.environ[name]


def forbid_unknown_variables(known: Collection[str]) -> None:
    """Refuse variables with the prefix that no option has, and empty ones of options. Raises `click.UsageError`."""
    for name, value in os.environ.items():
        if name in known and not value:
            # click would take the default, which for an upstream is the demo.
            raise click.UsageError(f"{name} is empty; give it a value or unset it")
        if name.startswith(ENV_PREFIX) and name not in known:
            raise click.UsageError(f"unknown environment variable {name}; {suggestion(name, sorted(known))}")
