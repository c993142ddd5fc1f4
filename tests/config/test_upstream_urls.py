import pytest

from proxy.config.settings import UpstreamSetting
from proxy.config.upstream_urls import parse_upstream
from proxy.errors import ConfigError
from proxy.protocol.providers import PROVIDERS


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("openai", UpstreamSetting(name="openai", base_url="https://api.openai.com/v1", provider=PROVIDERS["openai"])),
        (
            "openrouter",
            UpstreamSetting(
                name="openrouter", base_url="https://openrouter.ai/api/v1", provider=PROVIDERS["openrouter"]
            ),
        ),
        ("HTTPS://h/V1", UpstreamSetting(name="h", base_url="https://h/V1")),
        ("https://api.example.com/v1/", UpstreamSetting(name="api.example.com", base_url="https://api.example.com/v1")),
        ("http://10.0.0.1:8000", UpstreamSetting(name="10.0.0.1", base_url="http://10.0.0.1:8000")),
        ("http://[::1]:80/a/b", UpstreamSetting(name="::1", base_url="http://[::1]:80/a/b")),
    ],
)
def test_an_upstream_is_a_base_url_or_the_name_of_a_provider(text: str, setting: UpstreamSetting) -> None:
    assert parse_upstream(text) == setting


def test_the_five_named_systems_and_openai_are_presets() -> None:
    for name in ("infron", "openrouter", "apertis", "aigne", "nemorouter", "openai"):
        assert parse_upstream(name).base_url.startswith("https://")


def test_a_provider_without_an_address_needs_one() -> None:
    with pytest.raises(ConfigError, match="azure has no default base URL; set the base URL, and azure as the provider"):
        parse_upstream("azure")
    azure = parse_upstream("https://me.openai.azure.com", row=PROVIDERS["azure"])
    assert azure == UpstreamSetting(
        name="me.openai.azure.com", base_url="https://me.openai.azure.com", provider=PROVIDERS["azure"]
    )


def test_the_demo_is_an_upstream() -> None:
    assert parse_upstream("demo").is_demo


@pytest.mark.parametrize(
    "text",
    [
        "", "opneai", "OpenAI", "api.openai.com/v1", "api.openai.com/v1?key=pass", "ftp://x/v1",
        "https://", "https://h:port/v1", "https://h:99999/v1", "https://user:pass@h/v1", "https://h/v1?key=pass",
        "https://h/v1#pass", "https://h/a b", "https://hé/v1",
    ],
)  # fmt: skip
def test_invalid_upstreams_are_rejected(text: str) -> None:
    wanted = (
        r"accepted: a base URL as https://api\.example\.com/v1, or infron|did you mean (openai|https://api\.openai\.)"
    )
    with pytest.raises(ConfigError, match=wanted) as error:
        parse_upstream(text)
    assert "pass" not in str(error.value)


SUGGESTIONS = {
    # no scheme: http for this machine, a private network, a name without a domain or a port of its own
    "localhost:8000": "http://localhost:8000/v1",
    "localhost": "http://localhost/v1",
    "127.0.0.1:8000/v1/": "http://127.0.0.1:8000/v1",
    "0.0.0.0:8000": "http://0.0.0.0:8000/v1",
    "[::1]:8000": "http://[::1]:8000/v1",
    "10.0.0.7": "http://10.0.0.7/v1",
    "vllm:8000": "http://vllm:8000/v1",
    "embeddings.internal": "http://embeddings.internal/v1",
    "gpu.example.com:8000": "http://gpu.example.com:8000/v1",
    "api.example.com": "https://api.example.com/v1",
    "api.example.com:443/api": "https://api.example.com:443/api",
    "//api.example.com/v1": "https://api.example.com/v1",
    # a path that is known
    "api.openai.com": "https://api.openai.com/v1",
    "openrouter.ai": "https://openrouter.ai/api/v1",
    "generativelanguage.googleapis.com": "https://generativelanguage.googleapis.com/v1beta/openai",
    "api.cohere.ai/v1": "https://api.cohere.ai/compatibility/v1",
    "me.openai.azure.com": "https://me.openai.azure.com/openai/v1",
    # a scheme that is nearly one
    "http:/localhost:8000": "http://localhost:8000/v1",
    "https//api.example.com/v1": "https://api.example.com/v1",
    "htps://api.example.com": "https://api.example.com/v1",
    "hhttp://localhost:8000": "http://localhost:8000/v1",
    "wss://api.example.com/v1": "https://api.example.com/v1",
    # a route at the end
    "localhost:8000/v1/embeddings": "http://localhost:8000/v1",
    "https://api.example.com/v1/embeddings?model=m": "https://api.example.com/v1",
    "https://me.openai.azure.com/openai/deployments/d/embeddings?api-version=1": "https://me.openai.azure.com/openai/v1",
    # what was around it where it was copied from
    '"http://localhost:8000/v1"': "http://localhost:8000/v1",
    "'localhost:8000'": "http://localhost:8000/v1",
    "http://localhost:8000/v1'": "http://localhost:8000/v1",
    "“https://api.example.com/v1”": "https://api.example.com/v1",
    "<https://api.example.com/v1>": "https://api.example.com/v1",
    "https://api.example.com/v1,": "https://api.example.com/v1",
    "OPENAI_BASE_URL=https://api.example.com/v1": "https://api.example.com/v1",
    "http://localhost:8000/v1 ;": "http://localhost:8000/v1",
}


@pytest.mark.parametrize(("text", "meant"), SUGGESTIONS.items())
def test_an_invalid_upstream_gets_a_suggestion(text: str, meant: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_upstream(text)
    assert f"; did you mean {meant}?" in str(error.value)
    assert parse_upstream(meant).base_url == meant


@pytest.mark.parametrize(
    "text", ["http://localhost:8000/v1 ", " http://localhost:8000/v1\n", "http://localhost:8000/v1/"]
)
def test_white_space_around_an_upstream_and_a_slash_at_its_end_do_not_matter(text: str) -> None:
    assert parse_upstream(text).base_url == "http://localhost:8000/v1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://h/v1/embeddings/", "'https://h/v1/embeddings' ends with the route /embeddings; use the base URL https://h/v1"),
        ("https://h/v1/chat/completions", "ends with the route /chat/completions; use the base URL https://h/v1"),
        ("https://h/v1/completions", "ends with the route /completions; use"),
        ("https://h/v1/responses", "ends with the route /responses; use"),
        ("http://localhost:7997/embeddings", "ends with the route /embeddings; use the base URL http://localhost:7997"),
        ("https://me.openai.azure.com/openai/deployments/d/embeddings", "use the base URL https://me.openai.azure.com/openai/v1"),
    ],
)  # fmt: skip
def test_a_route_at_the_end_is_rejected_and_the_base_url_suggested(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_upstream(text)
    assert message in str(error.value)


def test_the_suggestion_has_the_providers_path() -> None:
    for provider, meant in {
        "infinity": "http://localhost:7997",
        "vllm": "http://localhost:7997/v1",
        "openrouter": "http://localhost:7997/api/v1",
    }.items():
        with pytest.raises(ConfigError, match=rf"did you mean {meant}\?$"):
            parse_upstream("localhost:7997", row=PROVIDERS[provider])


@pytest.mark.parametrize(
    "text", ["user:s3cret@localhost:8000", "http://h/s3cret@x?s3cret", "localhost:8000/v1?key=s3cret", "sk#s3cret.x:1"]
)
def test_a_suggestion_shows_no_secret(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_upstream(text)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("text", ["https://user:s3cret@h/v1", "https://h/v1?key=s3cret", "htps://u:s3cret@h"])
def test_the_error_for_an_upstream_shows_no_password(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_upstream(text)
    assert "s3cret" not in str(refused.value)
