"""What a proxy says when it has started: where it is, what it stands before, and how to try it (pure)."""

from proxy import __version__
from proxy.config import UNIX, Settings


def text_of(settings: Settings, base_url: str, admin_url: str) -> str:
    upstream = f"{settings.upstream.name}, {settings.upstream.base_url}, as {settings.upstream.provider.name}"
    model, variable = "MODEL", "API_KEY"
    if settings.upstream.name == "openai":
        model, variable = "text-embedding-3-small", "OPENAI_API_KEY"
    key, python_key, imports = f"${variable}", f'os.environ["{variable}"]', "import os; "
    if settings.upstream.is_demo:
        upstream = "demo, built in and offline: for trying this out, its vectors carry no meaning"
        model, key, python_key, imports = "demo", "any", '"any"', ""
    upstream += "".join(f"\n            {own.name} for {', '.join(own.models)}" for own in settings.routed)
    where, curl, client, packages = base_url, "curl", "", "openai"
    if settings.host.startswith(UNIX):
        path = settings.host.removeprefix(UNIX)
        where, curl = f"{base_url} on the socket {path}", f"curl --unix-socket {path}"
        imports, packages = imports + "import httpx; ", "openai httpx"
        client = f', http_client=httpx.Client(transport=httpx.HTTPTransport(uds="{path}"))'
    return f"""
  embedding-proxy {__version__}

  base_url  {where}
  upstream  {upstream}
  store     {settings.store}
  status    {admin_url}/
  metrics   {admin_url}/metrics

  Try it twice, and see X-Cache turn from MISS to HIT:

    {curl} -i -w '\\n' {base_url}/embeddings -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
      -d '{{"model": "{model}", "input": "hello, world", "dimensions": 8}}'

  Or from Python (pip install {packages}):

    {imports}from openai import OpenAI
    client = OpenAI(base_url="{base_url}", api_key={python_key}{client})
    print(client.embeddings.create(model="{model}", input=["hello, world", "hello again"]).data[0].embedding[:4])

  Stop with Ctrl-C.
"""
