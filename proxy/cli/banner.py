"""The text that a started proxy prints: its URLs, its upstreams, its store, and requests to try (pure)."""

from typing import Any

import orjson

from proxy import __version__
from proxy.canary.check_bodies import tokens_a_month
from proxy.config.settings import Settings, UpstreamSetting
from proxy.config.upstream_urls import usual_path
from proxy.protocol.hosts import LOOPBACK_HOSTS, UNIX_PREFIX
from proxy.protocol.provider import InputFormat
from proxy.protocol.providers import PROVIDERS
from proxy.upstream import base_urls

_HELLO = "hello, world"


def text_of(settings: Settings, base_url: str, admin_url: str) -> str:
    own = settings.upstream
    key = _Key(settings)
    where, curl = base_url, "curl"
    if settings.host.startswith(UNIX_PREFIX):
        path = settings.host.removeprefix(UNIX_PREFIX)
        where, curl = f"{base_url} on the socket {path}", f"curl --unix-socket {path}"
    return f"""
  embedding-proxy {__version__}

  base_url  {where}
  upstream  {_upstreams(settings)}
  store     {settings.store}{_canary(settings)}
  status    {admin_url}/
  metrics   {admin_url}/metrics

  Run this twice; X-Cache changes from MISS to HIT:

    {curl} -i -w '\\n' {base_url}/embeddings {key.header}-H "Content-Type: application/json" \\
      -d '{_body(own)}'
{_python(settings, base_url, key) if own.provider.accepts_openai_sdk else ""}
  Stop with Ctrl-C.
"""


def canary_cost(settings: Settings) -> str:
    """What the canary costs; "" without one."""
    if settings.canary_interval_s is None:
        return ""
    tokens = tokens_a_month(settings.canary_interval_s)
    without_key = [own.name for own in settings.upstreams if not (own.canary_key or own.key or _needs_no_key(own))]
    hint = f"; without a key for {', '.join(without_key)}: set --canary-key-env" if without_key else ""
    return f"every {_spell(settings.canary_interval_s)}, about {tokens:,} tokens a month for each model in use{hint}"


def _spell(seconds: float) -> str:
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds % unit_s == 0:
            return f"{seconds / unit_s:g} {unit}"
    return f"{seconds:g} s"


def _canary(settings: Settings) -> str:
    cost = canary_cost(settings)
    return f"\n  canary    {cost}" if cost else ""


class _Key:
    """The client's key in the examples: a variable, or `any` if the upstream checks none."""

    def __init__(self, settings: Settings) -> None:
        own = settings.upstream
        variable = None
        if settings.client_keys is not None:
            variable = "PROXY_KEY"  # one of embedding-proxy keys add
        elif not (own.key or _needs_no_key(own)):
            variable = "OPENAI_API_KEY" if own.name == "openai" else "API_KEY"
        name, _, scheme = own.provider.auth.partition(": ")
        shown = "any" if variable is None else f"${variable}"
        self.header = f'-H "{name}: {scheme + " " if scheme else ""}{shown}" '
        self.python = '"any"' if variable is None else f'os.environ["{variable}"]'
        self.imports = "" if variable is None else "import os; "


def _needs_no_key(own: UpstreamSetting) -> bool:
    return own.is_demo or any(f"//{name}" in own.base_url for name in LOOPBACK_HOSTS)


def _upstreams(settings: Settings) -> str:
    own = settings.upstream
    first = f"{own.name}, {own.base_url}, as {own.provider.name}{_via(own)}{_missing_path_hint(own)}"
    if own.is_demo:
        first = "demo, built in and offline, to try out the proxy; its vectors carry no meaning"
    return first + "".join(f"\n            {_routed(other)}" for other in settings.routed)


def _routed(setting: UpstreamSetting) -> str:
    others = "".join(f", else {other.upstream}" for other in setting.same_model)
    models = ", ".join(setting.models)
    return f"{setting.name} for {models}, {setting.base_url}, as {setting.provider.name}{_via(setting)}{others}"


def _via(setting: UpstreamSetting) -> str:
    return f", via {setting.egress.proxy.url}" if setting.egress.proxy else ""


def _missing_path_hint(own: UpstreamSetting) -> str:
    """A base URL without a path is rarely correct; with a wrong one, every request gets the upstream's 404."""
    parts, usual = base_urls.split(own.base_url), usual_path(own.provider)
    if not usual or parts is None or parts.path or own.provider is PROVIDERS["azure"]:
        return ""
    return f"\n            If it returns 404: most such APIs are at {own.base_url}{usual}"


def _model(own: UpstreamSetting) -> str:
    return "demo" if own.is_demo else "text-embedding-3-small" if own.name == "openai" else "MODEL"


def _body(own: UpstreamSetting) -> str:
    """A request that this upstream accepts."""
    texts: Any = _HELLO if InputFormat.TEXT in own.provider.inputs else [_HELLO]
    body = {"model": _model(own), "input": texts, **own.provider.required_fields}
    if own.is_demo:
        body["dimensions"] = 8
    return orjson.dumps(body).decode().replace('":', '": ').replace(',"', ', "')


def _python(settings: Settings, base_url: str, key: _Key) -> str:
    imports, client, packages = key.imports, "", "openai"
    if settings.host.startswith(UNIX_PREFIX):
        imports, packages = imports + "import httpx; ", "openai httpx"
        path = settings.host.removeprefix(UNIX_PREFIX)
        client = f', http_client=httpx.Client(transport=httpx.HTTPTransport(uds="{path}"))'
    own = settings.upstream
    extra = f", extra_body={dict(own.provider.required_fields)!r}" if own.provider.required_fields else ""
    return f"""
  Or from Python (pip install {packages}):

    {imports}from openai import OpenAI
    client = OpenAI(base_url="{base_url}", api_key={key.python}{client})
    request = {{"model": "{_model(own)}", "input": ["{_HELLO}", "hello again"]}}
    response = client.embeddings.with_raw_response.create(**request{extra})
    print("X-Cache:", response.headers["X-Cache"], response.parse().data[0].embedding[:4])
{_environment(settings, base_url)}"""


def _environment(settings: Settings, base_url: str) -> str:
    """How to point programs that use OpenAI's SDKs at the proxy. A socket has no URL for the variable."""
    if settings.host.startswith(UNIX_PREFIX):
        return ""
    return f"""
  Programs that use OpenAI's SDKs need only this variable:

    export OPENAI_BASE_URL={base_url}
"""
