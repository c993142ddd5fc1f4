import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routes import Route, Routes

OPENROUTER = Routes("https://openrouter.ai/api/v1")
BARE = Routes("http://localhost:11434")
AZURE = Routes("https://me.openai.azure.com")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/v1/embeddings", "/api/embeddings", "/embeddings"])
def test_the_cached_routes(path: str) -> None:
    assert OPENROUTER.find(path) == Route("https://openrouter.ai/api/v1/embeddings", is_embeddings=True)
    assert BARE.find(path + "?a=b%20c") == Route("http://localhost:11434/embeddings?a=b%20c", is_embeddings=True)


@pytest.mark.parametrize(
    "target", ["/openai/deployments/ada/embeddings?api-version=2024-10-21", "/openai/v1/embeddings"]
)
def test_azure_keeps_path_and_query(target: str) -> None:
    assert AZURE.find(target) == Route("https://me.openai.azure.com" + target, is_embeddings=True)


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
        ("/openai/deployments/a/b/embeddings", "https://openrouter.ai/openai/deployments/a/b/embeddings"),
    ],
)
def test_everything_else_is_passed_through(target: str, url: str) -> None:
    assert OPENROUTER.find(target) == Route(url, is_embeddings=False)


def test_a_target_under_the_upstreams_own_path_stays_as_it_is() -> None:
    cohere = Routes("https://api.cohere.com/compatibility/v1/")
    assert cohere.find("/compatibility/v1/models") == Route(
        "https://api.cohere.com/compatibility/v1/models", is_embeddings=False
    )


@pytest.mark.parametrize("target", ["http://evil.example/v1/embeddings", "*", "evil.example:443", ""])
def test_only_a_path_is_a_target(target: str) -> None:
    assert OPENROUTER.find(target) is None


@given(st.text())
def test_no_target_chooses_scheme_host_or_port(rest: str) -> None:
    route = OPENROUTER.find("/" + rest)
    assert route is not None
    assert route.url.startswith("https://openrouter.ai/")


@pytest.mark.parametrize("base_url", ["openrouter.ai", "ftp://x", "http://", "https:///v1"])
def test_a_base_url_has_a_scheme_and_a_host(base_url: str) -> None:
    with pytest.raises(ValueError, match="not an http"):
        Routes(base_url)
