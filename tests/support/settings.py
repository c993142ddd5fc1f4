"""The settings that tests start from."""

from dataclasses import replace
from typing import Any

from proxy.config.settings import MIB, Settings, StoreSetting, UpstreamSetting
from proxy.protocol.providers import PROVIDERS
from tests.support.scripted import ScriptedUpstream

DEFAULTS = Settings(
    host="127.0.0.1",
    port=0,
    admin_host="127.0.0.1",
    admin_port=0,
    upstream=UpstreamSetting(name="nowhere", base_url="http://127.0.0.1:1/v1"),
    store=StoreSetting(),
    store_limit_bytes=64 * MIB,
    memory_bytes=64 * MIB,
    ttl_s=None,
    max_body_bytes=64 * MIB,
    reports_full_usage=False,
    log_format="console",
    batch_window_s=0.01,
    max_batch_items=None,
    max_queued_items=100_000,
    max_held_bytes=1024 * MIB,
    upstream_concurrency=64,
    upstream_connect_timeout_s=10.0,
    upstream_read_timeout_s=60.0,
    upstream_timeout_s=60.0,
    drain_delay_s=0.0,
    shutdown_timeout_s=10.0,
    # Generous: a test must not turn a busy machine into a store that failed.
    store_budget_s=5.0,
)


def settings_for(upstream: ScriptedUpstream, /, provider: str = "generic", **changes: Any) -> Settings:
    its = UpstreamSetting(name="scripted", base_url=upstream.base_url, provider=PROVIDERS[provider])
    return replace(DEFAULTS, **{"upstream": its, **changes})
