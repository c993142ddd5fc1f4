"""Settings from the texts of flags, environment and file, and checks of what contradicts itself."""

import difflib
import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from proxy.cache.redis import redis_url
from proxy.config.settings import (
    DEMO_BASE_URL,
    GIB,
    KIB,
    MIB,
    Settings,
    StoreSetting,
    UpstreamSetting,
)
from proxy.errors import ConfigError
from proxy.protocol import header_fields
from proxy.protocol.hosts import LOOPBACK_HOSTS, UNIX_PREFIX
from proxy.protocol.providers import GENERIC, PROVIDERS, Provider
from proxy.upstream import base_urls, egress
from proxy.upstream.egress import Egress

_SIZES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": KIB, "mib": MIB, "gib": GIB}
_DURATIONS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_QUANTITY = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([a-z]*)", re.IGNORECASE)
# https://fetch.spec.whatwg.org/#origin-header
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9._-]*[a-z0-9])?)(:(?P<port>\d{1,5}))?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_PORT = 65535
_HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 §5.6.2
_MIN_STORE_BYTES = 16 * MIB


def parse_size(text: str) -> int:
    """Bytes: ``512MiB``, ``2GB``, ``1048576``. Raises `ConfigError`."""
    return int(_quantity(text, _SIZES, "a size", "a number with B, KB, MB, GB, KiB, MiB or GiB, as 512MiB"))


def parse_duration(text: str) -> float | None:
    """Seconds: ``30d``, ``12h``, ``90``; None for ``none``. Raises `ConfigError`."""
    if text.strip().lower() == "none":
        return None
    seconds = _quantity(text, _DURATIONS, "a duration", "a number with ms, s, m, h, d or w, as 30d; or none")
    if seconds <= 0:
        msg = f"{text!r} is not a duration above zero; to keep entries for good say none"
        raise ConfigError(msg)
    return seconds


def parse_seconds(text: str) -> float:
    """Seconds, 0 among them: ``10ms``, ``5s``, ``0``. Raises `ConfigError`."""
    return _quantity(text, _DURATIONS, "a duration", "a number with ms, s, m, h, d or w, as 10ms")


def parse_positive_seconds(text: str) -> float:
    """Seconds above zero: ``10m``, ``30s``. Raises `ConfigError`."""
    seconds = parse_seconds(text)
    if seconds <= 0:
        raise ConfigError(f"{text!r} is not above zero; accepted: a number with ms, s, m, h, d or w, as 10m")
    return seconds


def parse_header_names(text: str) -> frozenset[str]:
    """``X-Route, X-User``, as names in lower case. Raises `ConfigError`."""
    names = frozenset(name.strip().lower() for name in text.split(","))
    wrong = sorted(name for name in names if not _HEADER_NAME.fullmatch(name))
    if wrong:
        raise ConfigError(f"{wrong[0]!r} is not the name of a header field; accepted: names as X-Route, X-User")
    return names


def parse_neutral_headers(text: str) -> frozenset[str]:
    """``X-Session, X-Plan``, as names in lower case. Raises `ConfigError`, also for a field that can't be neutral."""
    names = parse_header_names(text)
    for name in sorted(names):
        if (why := header_fields.why_not_neutral(name)) is not None:
            raise ConfigError(f"{name!r} {why}")
    return names


def forbid_contradictions(settings: Settings) -> None:
    """Refuse a header field that is said to matter and not to matter. Raises `ConfigError`."""
    rows = {setting.provider.name: setting.provider for setting in (settings.upstream, *settings.routed)}
    neutral = {"--neutral-headers": settings.neutral_headers}
    neutral |= {f"neutral_headers of [providers.{name}]": row.neutral_headers for name, row in rows.items()}
    for where, names in neutral.items():
        if both := names & settings.key_headers:
            raise ConfigError(f"{min(both)!r} is in --key-headers and in {where}; leave it out of one of them")


def parse_cors_origins(text: str) -> frozenset[str]:
    """``https://app.example.com, http://localhost:3000`` as browsers send them in Origin; or ``*``, every origin.

    Raises `ConfigError`.
    """
    given = [part.strip() for part in text.split(",")]
    if "*" in given and len(given) > 1:
        raise ConfigError("* allows every origin, so no other can stand beside it")
    return frozenset("*" if origin == "*" else _parse_origin(origin) for origin in given)


def _parse_origin(text: str) -> str:
    """In the form that browsers send: lower case, no default port, the shortest IPv6 address."""
    match = _ORIGIN.fullmatch(text.lower())
    if match is None or int(match["port"] or 0) > _MAX_PORT:
        raise ConfigError(f"{base_urls.redacted(text)!r} is not an origin; {_origin_hint(text)}")
    scheme, host, port = match["scheme"], match["host"], match["port"]
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1])}]"
        except ValueError:
            raise ConfigError(f"{text!r} is not an origin; {_origin_hint('')}") from None
    return f"{scheme}://{host}" + ("" if port is None or int(port) == _DEFAULT_PORTS.get(scheme) else f":{int(port)}")


def _origin_hint(text: str) -> str:
    if text.lower() == "null":
        return "any site can make a page whose origin is null, so only * allows it"
    start = re.match(_ORIGIN, text.lower())
    if start is not None and text[start.end() :].startswith(("/", "?", "#")):
        return f"it has no path: say {text[: start.end()]}"
    if bare := _ORIGIN.fullmatch(f"https://{text.lower()}"):
        return f"did you mean {'http' if bare['host'].strip('[]') in LOOPBACK_HOSTS else 'https'}://{text}?"
    return "accepted: scheme://host or scheme://host:port, as https://app.example.com, separated by commas; or *"


def parse_file(text: str) -> Path | None:
    """A path, with ``~`` for the user's folder; None for ``none``. Raises `ConfigError`."""
    if text.strip().lower() == egress.NONE:
        return None
    path = _path(text) if text.strip() else None
    if path is None:
        raise ConfigError(f"{text!r} is not the path of a file")
    return path


def require_client_auth(settings: Settings) -> None:
    """Refuse to hold a key for whoever can connect from another machine. Raises `ConfigError`."""
    upstreams = settings.upstreams
    owned = [setting.name for setting in upstreams if setting.key is not None]
    if owned and len(owned) < len(upstreams):
        others = ", ".join(setting.name for setting in upstreams if setting.key is None)
        raise ConfigError(
            f"the proxy holds a key for {', '.join(owned)} and none for {others}; give all or none of them one"
        )
    if settings.client_keys is not None and not owned:
        raise ConfigError("--client-keys goes with --upstream-key-env: without it clients send the upstream's own keys")
    if owned and settings.client_keys is None and not _is_loopback(settings.host):
        raise ConfigError(
            f"--host {settings.host} lets others connect, and they would ask with the proxy's own key:"
            " give --client-keys, or listen on 127.0.0.1"
        )
    if owned and settings.client_keys is None and "*" in settings.cors_origins:
        raise ConfigError(
            "--cors-origins * lets every web page that a browser on this machine shows ask with the proxy's own key:"
            " name the origins, or give --client-keys"
        )


def require_use_of(given: Egress, settings: Settings) -> None:
    """Refuse settings of the way out that no upstream has a use for. Raises `ConfigError`."""
    if given.has_files and not any(own.uses_tls for own in settings.upstreams):
        raise ConfigError("--upstream-ca and --upstream-cert go with an upstream whose URL is https://")
    if given.proxy is not None and all(own.is_demo for own in settings.upstreams):
        raise ConfigError("--upstream-proxy goes with --upstream; the demo is built in, and no connection leads to it")


def require_otlp(environ: Mapping[str, str]) -> None:
    """Refuse what OpenTelemetry's own variables may ask for and is not here. Raises `ConfigError`.

    https://opentelemetry.io/docs/specs/otel/protocol/exporter/
    """
    protocol = "OTEL_EXPORTER_OTLP_PROTOCOL"
    if environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        protocol = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    for name, accepted in (("OTEL_TRACES_EXPORTER", "otlp"), (protocol, "http/protobuf")):
        if (environ.get(name) or accepted).strip() != accepted:
            raise ConfigError(f"{name}: {environ[name]!r} does not go with --traces otlp; accepted: {accepted}")


def _is_loopback(host: str) -> bool:
    if host.startswith(UNIX_PREFIX):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _quantity(text: str, units: dict[str, float] | dict[str, int], what: str, accepted: str) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2].lower() not in units:
        msg = f"{text!r} is not {what}; accepted: {accepted}"
        raise ConfigError(msg)
    return float(match[1]) * units[match[2].lower()]


def meant(name: str, names: Iterable[str]) -> str:
    """What may have been meant, or what is accepted, as the end of a message."""
    known = list(names)
    return closest(name, known) or f"accepted: {', '.join(known)}"


def closest(name: str, names: Iterable[str]) -> str:
    """What may have been meant, as the end of a message; nothing where nothing is near."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1) or difflib.get_close_matches(name.lower(), known, n=1)
    return f"did you mean {near[0]}?" if near else ""


def parse_upstream(
    text: str, *, row: Provider | None = None, rows: Mapping[str, Provider] = PROVIDERS
) -> UpstreamSetting:
    """A provider's name, ``demo``, or a base URL as one would give an SDK, with what ``row`` says of it.

    Raises `ConfigError`.
    """
    name = text.strip()
    if name == "demo" and rows:
        return UpstreamSetting(name=name, base_url=DEMO_BASE_URL)
    known = {own.name: own.base_url for own in rows.values() if own.base_url is not None}
    if name in known:
        return UpstreamSetting(name=name, base_url=known[name], provider=rows[name])
    if name in rows:
        msg = f"{name} has no address of its own; give its base URL, and {name} as the provider (--provider {name})"
        raise ConfigError(msg)
    accepted = "accepted: a base URL as https://api.example.com/v1" + (f", or {', '.join(known)}, demo" if rows else "")
    guess = base_urls.meant(name, path=usual_path(row), known=known.values() if row is None else ())
    hint = f"did you mean {guess}?" if guess else closest(name, known)
    parts = base_urls.split(name)
    if parts is None or parts.hostname is None:
        raise ConfigError(f"{base_urls.redacted(text)!r} is not an upstream; {hint or accepted}")
    if not base_urls.is_plain(name):
        raise ConfigError(
            f"{base_urls.redacted(text)!r} has a query, a fragment, a user, quotes, white space or non-ASCII letters;"
            f" {' '.join(filter(None, (hint, accepted)))}"
        )
    base_url = parts.scheme + name[len(parts.scheme) :].rstrip("/")  # the scheme in lower case, the rest as it is
    provider = row or rows[GENERIC.name]
    if route := base_urls.route_of(base_url, provider.path):
        rest = base_urls.without_route(base_url, provider.path)
        raise ConfigError(f"{base_url!r} has {route} at its end, which is not part of the base URL; say {rest}")
    return UpstreamSetting(name=parts.hostname, base_url=base_url, provider=provider)


def usual_path(row: Provider | None) -> str:
    """Where an API of this kind usually is on its host."""
    own = None if row is None or row.base_url is None else base_urls.split(row.base_url)
    return base_urls.USUAL_PATH if own is None else own.path


def parse_store(text: str) -> StoreSetting:
    """``memory:``, ``sqlite:///path`` or a Redis URL. Raises `ConfigError`."""
    scheme, colon, rest = text.strip().partition(":")
    accepted = (
        "accepted: memory:, sqlite:////absolute/path, redis://host:port/db, redis+cluster://host:port,host:port,"
        " redis+sentinel://host:port,host:port/master/db, rediss… for TLS, unix:///path/to/socket"
    )
    if scheme == "memory" and colon and not rest:
        return StoreSetting()
    if scheme == "sqlite" and rest.startswith("///") and len(rest) > len("///"):
        # As in SQLAlchemy: three slashes before a relative path, four before an absolute one.
        path = _path(rest.removeprefix("///"))
        if path is not None:
            return StoreSetting(path=path)
    if _is_redis_url(text.strip()):
        return StoreSetting(url=text.strip())
    msg = f"{base_urls.redacted(text)!r} is not a store; {accepted}"
    raise ConfigError(msg)


def parse_store_limit(text: str) -> int:
    size = parse_size(text)
    if size < _MIN_STORE_BYTES:
        msg = f"{text!r} is too small; accepted: {_MIN_STORE_BYTES // MIB}MiB or more"
        raise ConfigError(msg)
    return size


def _path(text: str) -> Path | None:
    if "\0" in text:
        return None
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~ of a user that does not exist
        return None


def _is_redis_url(url: str) -> bool:
    try:
        redis_url.parse(url)
    except ValueError:
        return False
    return True
