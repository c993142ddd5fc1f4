"""The environment: variables that start with the proxy's prefix and are none of its options."""

import os
import re
from collections.abc import Collection

import click

from proxy.cli.option import ENV_PREFIX
from proxy.config.suggestion import suggestion

# Kubernetes puts the address of every Service into every Pod's environment; for one named `embedding-proxy` or
# `embedding-proxy-admin` these start with our prefix
# (https://kubernetes.io/docs/tutorials/services/connect-applications-service/).
_KUBERNETES_SERVICE = re.compile(r"EMBEDDING_PROXY_(ADMIN_)?(SERVICE_(HOST|PORT)\w*|PORT_\d+_\w+)")


def drop_kubernetes_service_env() -> None:
    """Remove Kubernetes' addresses of Services where they have the names of --port and --admin-port."""
    for name in ("EMBEDDING_PROXY_PORT", "EMBEDDING_PROXY_ADMIN_PORT"):
        if os.environ.get(name, "").startswith("tcp://"):
            del os.environ[name]


def forbid_unknown_variables(known: Collection[str]) -> None:
    """Refuse variables with the prefix that no option has, and empty ones of options. Raises `click.UsageError`."""
    for name, value in os.environ.items():
        if name in known and not value:
            # click would take the default, which for an upstream is the demo.
            raise click.UsageError(f"{name} is empty; give it a value or unset it")
        if name.startswith(ENV_PREFIX) and name not in known and not _KUBERNETES_SERVICE.fullmatch(name):
            raise click.UsageError(f"unknown environment variable {name}; {suggestion(name, sorted(known))}")
