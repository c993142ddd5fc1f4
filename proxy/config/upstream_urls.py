"""The upstream as operators write it: a provider's name, or a base URL (pure)."""

from collections.abc import Mapping

from proxy.config.settings import DEMO_BASE_URL, UpstreamSetting
from proxy.config.suggestion import closest_match
from proxy.errors import ConfigError
from proxy.protocol.provider import Provider
from proxy.protocol.providers import GENERIC, PROVIDERS
from proxy.upstream import base_urls


def parse_upstream(
    text: str, *, row: Provider | None = None, rows: Mapping[str, Provider] = PROVIDERS
) -> UpstreamSetting:
    """The upstream that ``text`` names: a provider of ``rows``, ``demo``, or a base URL as an SDK takes it.

    ``row`` describes the API at a base URL; without it, `GENERIC` does. Raises `ConfigError`.
    """
    name = text.strip()
    if name == "demo":
        return UpstreamSetting(name=name, base_url=DEMO_BASE_URL)
    if name not in rows:
        return _upstream_at(text, row, rows)
    base_url = rows[name].base_url
    if base_url is None:
        raise ConfigError(
            f"{name} has no default base URL; set the base URL, and {name} as the provider (--provider {name})"
        )
    return UpstreamSetting(name=name, base_url=base_url, provider=rows[name])


def parse_base_url(text: str, row: Provider, where: str) -> UpstreamSetting:
    """The upstream at a base URL, whose API ``row`` describes. Raises `ConfigError`, which begins with ``where``."""
    try:
        return _upstream_at(text, row, {})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _upstream_at(text: str, row: Provider | None, rows: Mapping[str, Provider]) -> UpstreamSetting:
    url = text.strip()
    known = {own.name: own.base_url for own in rows.values() if own.base_url is not None}
    accepted = "accepted: a base URL as https://api.example.com/v1" + (f", or {', '.join(known)}, demo" if rows else "")
    guess = base_urls.suggest(url, path=usual_path(row), known=known.values() if row is None else ())
    guess = guess or closest_match(url, known)
    hint = f"did you mean {guess}?" if guess else ""
    parts = base_urls.split(url)
    if parts is None or parts.hostname is None:
        raise ConfigError(f"{base_urls.redacted(text)!r} is not an upstream; {hint or accepted}")
    if not base_urls.is_plain(url):
        raise ConfigError(
            f"{base_urls.redacted(text)!r} has a query, a fragment, a user, quotes, white space or non-ASCII letters;"
            f" {' '.join(filter(None, (hint, accepted)))}"
        )
    base_url = parts.scheme + url[len(parts.scheme) :].rstrip("/")  # only the scheme is lowercased
    provider = row or rows[GENERIC.name]
    if route := base_urls.route_of(base_url, provider.path):
        rest = base_urls.without_route(base_url, provider.path)
        raise ConfigError(f"{base_url!r} ends with the route {route}; use the base URL {rest}")
    return UpstreamSetting(name=parts.hostname, base_url=base_url, provider=provider)


def usual_path(row: Provider | None) -> str:
    """The path where an API of this kind usually is on its host."""
    own = None if row is None or row.base_url is None else base_urls.split(row.base_url)
    return base_urls.USUAL_PATH if own is None else own.path
