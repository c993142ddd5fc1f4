from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from yarl import URL

from proxy.protocol.providers import GENERIC, PROVIDERS
from proxy.protocol.targets import is_embeddings_like, resolve, without_dot_segments
from proxy.upstream.urls import Route, Routes

OPENROUTER = Routes("https://openrouter.ai/api/v1")
BARE = Routes("http://localhost:11434")
AZURE = Routes("https://me.openai.azure.com")

BASES = ["https://h", "https://h/v1", "https://h/api/v1", "http://h:8/aoai/openai/v1", "https://h//odd//v1"]
ALL = [
    Routes(base, provider)
    for base in BASES
    for provider in (*PROVIDERS.values(), replace(GENERIC, path="/embeddings/"), replace(GENERIC, path="/embed"))
]
# Text in which slashes, dots, escapes and words of routes come up often.
WORDS = ["/", "//", ".", "..", "%2e", "%2F", "%65", "\\", "?", "#", "@", ":", "v1", "api", "openai", "embeddings"]
WORDS += ["deployments", "engines", "/.upstream/", "/v1/embeddings", "evil.example"]
TEXTS = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=8).map("".join)
PATHS = TEXTS.map(lambda text: text.replace("?", "").replace("#", ""))


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/v1/embeddings", "/api/embeddings", "/embeddings"])
def test_cached_routes_of_each_provider(path: str) -> None:
    assert OPENROUTER.find(path) == Route("https://openrouter.ai/api/v1/embeddings", is_embeddings=True)
    assert BARE.find(path + "?a=b%20c") == Route("http://localhost:11434/embeddings?a=b%20c", is_embeddings=True)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/embeddings/",
        "//v1/embeddings",
        "/v1//embeddings",
        "/v1/%65mbeddings",
        "/%761/embedding%73/",
        "/v1/embeddings?",
        "/v1/embeddings#top",
        # The client adds what is in its base URL already.
        "/v1/v1/embeddings",
        "/api/v1/v1/embeddings",
        "/v1/api/v1/embeddings",
        "/api/v1/api/v1/embeddings",
        "/v1/embeddings/embeddings",
        "/v1//v1/embeddings/",
    ],
)
def test_path_variants_map_to_the_same_route(target: str) -> None:
    assert OPENROUTER.find(target) == Route("https://openrouter.ai/api/v1/embeddings", is_embeddings=True)
    relayed = OPENROUTER.relayed(target)
    assert relayed is not None
    assert relayed.endswith(target.removeprefix("/api/v1").removeprefix("/v1")), "other methods go as they came"


@pytest.mark.parametrize(
    "target",
    [
        "/v1%2Fembeddings",
        "/v1/%2565mbeddings",
        "/V1/Embeddings",
        "/v1/embeddings;v=1",
        "/v1\\embeddings",
        "/\\openrouter.ai/v1/embeddings",
        "/v1/v1/v1/embeddings",
        "/v1/x/../embeddings",
        "/v1/./embeddings",
        "/v1/embeddings/.",
        "/v1/%2e%2e/v1/embeddings",
        "/openai/deployments/../embeddings",
        "/v1/../openai/deployments/ada/embeddings",
        "/v1/../engines/ada/embeddings",
        "/engines/v1/embeddings",
        "/engines/llama.cpp/v1/embeddings",
    ],
)
def test_ambiguous_path_is_not_the_cached_route(target: str) -> None:
    for routes in (OPENROUTER, AZURE):
        found = routes.find(target)
        assert found is not None
        assert not found.is_embeddings
        assert found.url == routes.relayed(target)


def test_native_api_of_a_provider_is_passed_through() -> None:
    ollama = Routes("http://127.0.0.1:11434/v1", PROVIDERS["ollama"])
    for target in ("/api/embeddings", "/api//embeddings", "/api/embeddings/", "/v1/api/embeddings"):
        found = ollama.find(target)
        assert found is not None
        assert not found.is_embeddings


def test_trailing_slash_of_a_configured_path_is_optional() -> None:
    routes = Routes("https://h/v1", replace(GENERIC, path="/embeddings/"))
    for target in ("/v1/embeddings", "/v1/embeddings/", "/v1/v1/embeddings"):
        assert routes.find(target) == Route("https://h/v1/embeddings/", is_embeddings=True)


# --- Azure


@pytest.mark.parametrize(
    "target", ["/openai/deployments/ada/embeddings?api-version=2024-10-21", "/openai/v1/embeddings"]
)
def test_azure_path_and_query_are_kept(target: str) -> None:
    assert AZURE.find(target) == Route("https://me.openai.azure.com" + target, is_embeddings=True)


@pytest.mark.parametrize("base", ["/aoai", "/aoai/openai", "/aoai/openai/v1", "/aoai/v1", "/aoai/openai/deployments/x"])
@pytest.mark.parametrize(
    "before", ["", "/aoai", "/v1", "/openai", "/aoai/"], ids=["root", "its own", "v1", "doubled", "slash"]
)
@pytest.mark.parametrize("provider", ["azure", "generic"])
def test_azure_behind_a_gateway_base_path(base: str, before: str, provider: str) -> None:
    routes = Routes("https://apim.example" + base, PROVIDERS[provider])
    for rest in ("/openai/deployments/ada/embeddings", "/openai/v1/embeddings"):
        url = f"https://apim.example/aoai{rest}?api-version=1"
        assert routes.find(f"{before}{rest}/?api-version=1") == Route(url, is_embeddings=True)
        assert routes.embeddings(f"{before}{rest}?api-version=1") == url


@pytest.mark.parametrize(
    ("base", "home"), [("/aoai", "/aoai"), ("/aoai/openai", "/aoai/openai"), ("/openai/v1", "/openai")]
)
def test_azure_client_configured_with_a_base_url(base: str, home: str) -> None:
    routes = Routes("https://apim.example" + base, PROVIDERS["azure"])
    url = f"https://apim.example{home}/deployments/ada/embeddings?api-version=1"
    for before in ("", "/v1"):
        target = f"{before}/deployments/ada/embeddings?api-version=1"
        assert routes.find(target) == Route(url, is_embeddings=True)


@pytest.mark.parametrize("base", ["", "/gateway/v1", "/openai/v1"])
def test_path_below_a_base_path_is_unchanged(base: str) -> None:
    for before in (base, "/aoai"):
        target = f"{before}/deployments/ada/embeddings?api-version=1"
        assert Routes("https://h" + base).find(target) == Route("https://h" + target, is_embeddings=True)


def test_other_azure_routes_use_the_base_path() -> None:
    routes = Routes("https://apim.example/aoai", PROVIDERS["azure"])
    target = "/openai/deployments/gpt/chat/completions?api-version=1"
    for before in ("", "/aoai"):
        assert routes.relayed(before + target) == "https://apim.example/aoai" + target


def test_provider_without_deployments_has_no_deployment_route() -> None:
    openai = Routes("https://api.openai.com/v1", PROVIDERS["openai"])
    found = openai.find("/openai/deployments/ada/embeddings")
    assert found == Route("https://api.openai.com/openai/deployments/ada/embeddings", is_embeddings=False)


# --- engines


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("/v1/engines/ada/embeddings", "https://openrouter.ai/api/v1/engines/ada/embeddings"),
        ("/api/v1/engines/ada/embeddings/?a=b", "https://openrouter.ai/api/v1/engines/ada/embeddings?a=b"),
        ("/v1//engines/BAAI%2Fbge%2Dm3/embeddings", "https://openrouter.ai/api/v1/engines/BAAI%2Fbge-m3/embeddings"),
        ("/engines/BAAI/bge-m3/embeddings", "https://openrouter.ai/engines/BAAI/bge-m3/embeddings"),
    ],
)
def test_engine_path_is_kept(target: str, url: str) -> None:
    assert OPENROUTER.find(target) == Route(url, is_embeddings=True)
    assert OPENROUTER.embeddings(target) == url


def test_fallback_url_uses_its_model_name() -> None:
    engine, deployment = "/v1/engines/m/embeddings", "/openai/deployments/m/embeddings?api-version=1"
    assert OPENROUTER.embeddings(engine, model="a/b") == "https://openrouter.ai/api/v1/engines/a%2Fb/embeddings"
    assert AZURE.embeddings(deployment, model="n") == AZURE.embeddings(deployment.replace("/m/", "/n/"))
    openai = Routes("https://api.openai.com/v1", PROVIDERS["openai"])
    assert openai.embeddings(deployment, model="n") == "https://api.openai.com/v1/embeddings"
    assert openai.embeddings("/compatibility/v1/embeddings?a=b") == "https://api.openai.com/v1/embeddings?a=b"


# --- passed through


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("/v1/models", "https://openrouter.ai/api/v1/models"),
        ("/api/v1/models?x=1", "https://openrouter.ai/api/v1/models?x=1"),
        ("/v1/embeddings/models", "https://openrouter.ai/api/v1/embeddings/models"),
        ("/v1", "https://openrouter.ai/api/v1"),
        ("/v1beta/models", "https://openrouter.ai/v1beta/models"),
        ("/rerank", "https://openrouter.ai/rerank"),
        ("/", "https://openrouter.ai/"),
        ("/v1/%2e%2e/x", "https://openrouter.ai/api/v1/%2e%2e/x"),
        ("//evil.example/v1", "https://openrouter.ai//evil.example/v1"),
        ("//evil.example/v1/embeddings", "https://openrouter.ai//evil.example/v1/embeddings"),
        ("/openai/deployments/a/b/embeddings", "https://openrouter.ai/openai/deployments/a/b/embeddings"),
    ],
)
def test_other_routes_are_passed_through(target: str, url: str) -> None:
    assert OPENROUTER.find(target) == Route(url, is_embeddings=False)
    assert OPENROUTER.relayed(target) == url


@pytest.mark.parametrize("target", ["/v1/things//x/?a=&b=%7e", "/v1/%7Eme/", "/rerank//", "/v1/%65ngines?", "/v1/a#b"])
def test_passed_through_target_is_byte_identical(target: str) -> None:
    assert BARE.relayed(target) == "http://localhost:11434" + target.removeprefix("/v1")


def test_target_below_the_upstream_base_path_is_unchanged() -> None:
    cohere = Routes("https://api.cohere.com/compatibility/v1/")
    assert cohere.find("/compatibility/v1/models") == Route(
        "https://api.cohere.com/compatibility/v1/models", is_embeddings=False
    )


@pytest.mark.parametrize("target", ["http://evil.example/v1/embeddings", "*", "evil.example:443", ""])
def test_target_must_be_in_origin_form(target: str) -> None:
    assert OPENROUTER.find(target) is None
    assert OPENROUTER.relayed(target) is None


@given(st.one_of(st.text(), TEXTS), st.sampled_from(ALL))
def test_target_cannot_change_scheme_host_or_port(rest: str, routes: Routes) -> None:
    found, relayed = routes.find("/" + rest), routes.relayed("/" + rest)
    assert found is not None
    for url in (found.url, relayed, routes.embeddings("/" + rest)):
        assert url is not None
        assert url.startswith(routes._origin + "/")
        assert URL(url, encoded=True).origin() == URL(routes._origin)


@pytest.mark.parametrize("base_url", ["openrouter.ai", "ftp://x", "http://", "https:///v1"])
def test_base_url_requires_scheme_and_host(base_url: str) -> None:
    with pytest.raises(ValueError, match="not an http"):
        Routes(base_url)


# --- locations


@given(PATHS, st.one_of(st.just(""), TEXTS.map(lambda text: "?" + text.replace("#", ""))), st.sampled_from(ALL))
def test_location_at_the_upstream_maps_to_this_proxy(path: str, query: str, routes: Routes) -> None:
    url = f"{routes._origin}/{path}{query}"
    target = routes.client_location(f"{routes._origin}/v1/models", url)
    assert target is not None
    assert target.startswith("/")
    assert target[1:2] not in {"/", "\\"}, "that would be a host"
    assert without_dot_segments(target.partition("?")[0]) == target.partition("?")[0], "clients leave it as it is"
    meant = f"{routes._origin}{without_dot_segments('/' + path)}{query}"
    assert routes.relayed(target) == meant
    found = routes.find(target)
    assert found is not None
    assert found.url == meant


@given(PATHS, PATHS, st.sampled_from(ALL))
def test_relative_location_resolves_as_at_the_upstream(at: str, location: str, routes: Routes) -> None:
    url = f"{routes._origin}/{at}"
    there = resolve(url, location)
    assume(location and there.origin == resolve(routes._origin, "").origin)
    target = routes.client_location(url, location)
    assert target is not None
    assert routes.relayed(target) == f"{routes._origin}{there.path}"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://openrouter.ai/api/v1/jobs/1?a=b#c", "/api/v1/jobs/1?a=b#c"),
        ("HTTPS://u:p@OpenRouter.ai:443/x", "/x"),
        ("//openrouter.ai/x", "/x"),
        # From an application that does not know of the TLS before it; not to be asked without.
        ("http://openrouter.ai/x", "/x"),
        ("http://openrouter.ai:443/x", "/x"),
        ("https://openrouter.ai", "/"),
        ("jobs/1", "/api/v1/jobs/1"),
        ("?page=2", "/api/v1/embeddings?page=2"),
        ("/api/v1/models", "/api/v1/models"),
        # These would be mapped elsewhere, or taken for a host.
        ("/v1/jobs/1", "/.upstream/v1/jobs/1"),
        ("/embeddings", "/.upstream/embeddings"),
        ("https://openrouter.ai//evil.example/x", "/.upstream//evil.example/x"),
        ("https://openrouter.ai/\\evil.example/x", "/.upstream/\\evil.example/x"),
        ("https://openrouter.ai/.upstream/x", "/.upstream/.upstream/x"),
        ("https://openrouter.ai/a/%2e%2e/%2e%2e/b", "/b"),
    ],
)
def test_location_at_the_upstream_examples(location: str, target: str) -> None:
    assert OPENROUTER.client_location("https://openrouter.ai/api/v1/embeddings", location) == target


@pytest.mark.parametrize(
    "location",
    [
        "https://elsewhere.example/api/v1/embeddings",
        "http://openrouter.ai:8080/api/v1/embeddings",
        "https://openrouter.ai:8443/",
        "https://openrouter.ai.evil.example/",
        "//elsewhere.example/x",
        "mailto:me",
        "https:x",
        "",
        "https://[::1",
        "https://h:99999999999999999999/",
    ],
)
def test_location_elsewhere_is_unchanged(location: str) -> None:
    assert OPENROUTER.client_location("https://openrouter.ai/api/v1/embeddings", location) == location


def test_redirect_to_https_is_unchanged() -> None:
    location = "https://h/v1/embeddings"
    assert Routes("http://h/v1").client_location("http://h/v1/embeddings", location) == location


@given(PATHS)
def test_location_at_a_non_default_upstream_must_be_embeddings(path: str) -> None:
    routes = Routes("https://h/v1", is_default=False)
    target = routes.client_location("https://h/v1/embeddings", "https://h/" + path)
    assert target is None or is_embeddings_like(target)
    assert routes.client_location("https://h/v1/embeddings", "https://elsewhere/" + path) == "https://elsewhere/" + path


# --- redirects


@pytest.mark.parametrize(
    ("base_url", "target", "location", "advice"),
    [
        ("http://h/v1", "/v1/embeddings", "https://h/v1/embeddings", "set --upstream https://h/v1 "),
        ("https://h/v1", "/v1/embeddings", "/api/v1/embeddings", "set --upstream https://h/api/v1 "),
        ("https://h", "/embeddings", "https://h/v1/embeddings?x=secret", "set --upstream https://h/v1 "),
        ("https://h/v1", "/embeddings", "//u:secret@g:8/v2/embeddings", "set --upstream https://g:8/v2 "),
        (
            "https://h/openai/v1",
            "/openai/deployments/d/embeddings?api-version=1",
            "https://g/aoai/openai/deployments/d/embeddings?api-version=1",
            "set --upstream https://g/aoai/openai/v1 ",
        ),
        ("https://h/v1", "/v1/engines/m/embeddings", "/v2/engines/m/embeddings", "set --upstream https://h/v2 "),
        ("https://h/v1", "/v1/embeddings", "/v1/embeddings/", 'set path = "/embeddings/" in [providers.generic] '),
        ("https://h/v1", "/v1/embeddings", "/login?next=secret", "check --upstream "),
        ("https://h/v1", "/v1/embeddings", "/v1/embeddings?session=secret", "check --upstream "),
        ("https://h/v1", "/v1/embeddings", "", "check --upstream "),
    ],
)
def test_redirect_hint_for_the_embeddings_route(base_url: str, target: str, location: str, advice: str) -> None:
    routes = Routes(base_url)
    found = routes.find(target)
    assert found is not None
    said = routes.redirect_hint(found.url, location)
    assert said is not None
    assert said.startswith(advice)
    assert "secret" not in said


def test_no_redirect_hint_for_another_route() -> None:
    assert OPENROUTER.redirect_hint("https://openrouter.ai/api/v1/models", "https://g/v1/models") is None


@given(st.text(), st.sampled_from(ALL))
def test_redirect_hint_accepts_any_location(location: str, routes: Routes) -> None:
    url = routes.embeddings("/v1/embeddings")
    assert routes.redirect_hint(url, location) is not None
