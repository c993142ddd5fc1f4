"""Settings that are each valid but contradict each other (pure)."""

from collections.abc import Mapping
from ipaddress import ip_address

from proxy.amounts import byte_size
from proxy.config.settings import Settings
from proxy.errors import ConfigError
from proxy.protocol.hosts import UNIX_PREFIX
from proxy.upstream.egress import Egress


def forbid_contradictions(settings: Settings) -> None:
    """Refuse a header field that is configured as part of the key and as neutral, and bodies that may be so large that
    no memory is held for them. Raises `ConfigError`."""
    if settings.max_held_bytes < settings.max_body_bytes:
        raise ConfigError(
            f"--max-held {byte_size(settings.max_held_bytes)} is less than --max-body"
            f" {byte_size(settings.max_body_bytes)}: larger bodies would get 503 for ever; raise --max-held or lower"
            " --max-body"
        )
    rows = {setting.provider.name: setting.provider for setting in settings.upstreams}
    neutral = {"--neutral-headers": settings.neutral_headers}
    neutral |= {f"neutral_headers of [providers.{name}]": row.neutral_headers for name, row in rows.items()}
    for where, names in neutral.items():
        if both := names & settings.key_headers:
            raise ConfigError(f"{min(both)!r} is in --key-headers and in {where}; remove it from one of them")


def require_client_auth(settings: Settings) -> None:
    """Refuse to lend the proxy's own upstream keys to clients that nothing authenticates. Raises `ConfigError`."""
    with_key = [setting.name for setting in settings.upstreams if setting.key is not None]
    without_key = [setting.name for setting in settings.upstreams if setting.key is None]
    if with_key and without_key:
        raise ConfigError(
            f"the proxy has a key for {', '.join(with_key)} but none for {', '.join(without_key)};"
            " set a key for all upstreams or for none"
        )
    if settings.client_keys is not None:
        if not with_key:
            raise ConfigError("--client-keys needs --upstream-key-env; without it, clients send the upstream's keys")
        return
    if with_key and not _is_loopback(settings.host):
        raise ConfigError(
            f"--host {settings.host} accepts other machines, which could use the proxy's own key:"
            " set --client-keys, or listen on 127.0.0.1"
        )
    if with_key and "*" in settings.cors_origins:
        raise ConfigError(
            "--cors-origins * lets any web page open in a browser on this machine use the proxy's own key:"
            " list the origins, or set --client-keys"
        )


def require_canary(settings: Settings) -> None:
    """Refuse options of the canary that do nothing without one. Raises `ConfigError`."""
    if settings.canary_interval_s is not None:
        return
    if any(own.canary_key is not None for own in settings.upstreams):
        raise ConfigError("--canary-key-env needs --canary, as --canary 6h")
    if settings.begins_epochs:
        raise ConfigError("--on-drift new-epoch needs --canary, as --canary 6h; without it nothing notices drift")


def require_use_of(default: Egress, settings: Settings) -> None:
    """Refuse egress options that no upstream uses. Raises `ConfigError`."""
    if default.has_files and not any(own.uses_tls for own in settings.upstreams):
        raise ConfigError("--upstream-ca and --upstream-cert need an upstream with an https:// URL")
    if default.proxy is not None and all(own.is_demo for own in settings.upstreams):
        raise ConfigError("--upstream-proxy needs --upstream; the built-in demo makes no connections")


def require_otlp(environment: Mapping[str, str]) -> None:
    """Refuse values of OpenTelemetry's own variables that the proxy does not support. Raises `ConfigError`.

    https://opentelemetry.io/docs/specs/otel/protocol/exporter/
    """
    protocol = "OTEL_EXPORTER_OTLP_PROTOCOL"
    if environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        protocol = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    for name, accepted in (("OTEL_TRACES_EXPORTER", "otlp"), (protocol, "http/protobuf")):
        if (environment.get(name) or accepted).strip() != accepted:
            raise ConfigError(
                f"{name}: {environment[name]!r} is not supported with --traces otlp; accepted: {accepted}"
            )


def _is_loopback(host: str) -> bool:
    if host.startswith(UNIX_PREFIX):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
