"""The settings that tests start from: the defaults, but for ports, an upstream, and what would make a test slow."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from proxy.cli.options.option import Option, settings_fields
from proxy.cli.options.table import OPTIONS
from proxy.config.settings import MIB, Settings, StoreSetting, UpstreamSetting
from proxy.protocol.providers import PROVIDERS
from tests.support.scripted import ScriptedUpstream


def default_fields(options: Sequence[Option]) -> dict[str, Any]:
    """The fields of `Settings` by the options' default values."""
    return settings_fields(options, {option.key: option.default_value() for option in options})


DEFAULTS = replace(
    Settings(
        **default_fields(OPTIONS),
        upstream=UpstreamSetting(name="nowhere", base_url="http://127.0.0.1:1/v1"),
        # Generous: a test must not turn a busy machine into a store that failed.
        store_timeout_s=5.0,
    ),
    port=0,
    admin_port=0,
    store=StoreSetting(),
    store_limit_bytes=64 * MIB,
    memory_bytes=64 * MIB,
    rate_limit_wait_s=60.0,
    upstream_read_timeout_s=60.0,
    upstream_timeout_s=60.0,
    shutdown_timeout_s=10.0,
)


def settings_for(upstream: ScriptedUpstream, /, provider: str = "generic", **changes: Any) -> Settings:
    its = UpstreamSetting(name="scripted", base_url=upstream.base_url, provider=PROVIDERS[provider])
    return replace(DEFAULTS, **{"upstream": its, **changes})
