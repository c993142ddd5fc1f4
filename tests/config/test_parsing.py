from pathlib import Path

import pytest

from proxy.config import parsing
from proxy.config.settings import StoreSetting, UpstreamSetting
from proxy.errors import ConfigError
from proxy.protocol.providers import PROVIDERS
from proxy.upstream.egress import parse_proxy


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("512MiB", 512 * 1024**2),
        ("1.5 GiB", 3 * 1024**3 // 2),
        ("2gb", 2 * 10**9),
        ("1 B", 1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parsing.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "9" * 400, "1 TiBs", "1e9", "12 bananas", "MiB"])
def test_what_is_no_size_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a size; accepted: .*512MiB"):
        parsing.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30d", 30 * 86400), ("1.5h", 5400), ("250ms", 0.25), ("None", None)]
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parsing.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-5s", "3 fortnights"])
def test_what_is_no_duration_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError, match="none"):
        parsing.parse_duration(text)


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
def test_upstreams(text: str, setting: UpstreamSetting) -> None:
    assert parsing.parse_upstream(text) == setting


def test_the_five_named_systems_and_openai_are_presets() -> None:
    for name in ("infron", "openrouter", "apertis", "aigne", "nemorouter", "openai"):
        assert parsing.parse_upstream(name).base_url.startswith("https://")


def test_a_provider_without_an_address_needs_one() -> None:
    with pytest.raises(ConfigError, match="azure has no address of its own; give its base URL, and azure as the prov"):
        parsing.parse_upstream("azure")
    azure = parsing.parse_upstream("https://me.openai.azure.com", row=PROVIDERS["azure"])
    assert azure == UpstreamSetting(
        name="me.openai.azure.com", base_url="https://me.openai.azure.com", provider=PROVIDERS["azure"]
    )


def test_the_demo_is_an_upstream() -> None:
    assert parsing.parse_upstream("demo").is_demo


@pytest.mark.parametrize(
    "text",
    [
        "", "opneai", "OpenAI", "api.openai.com/v1", "api.openai.com/v1?key=pass", "ftp://x/v1",
        "https://", "https://h:port/v1", "https://h:99999/v1", "https://user:pass@h/v1", "https://h/v1?key=pass",
        "https://h/v1#pass", "https://h/a b", "https://hé/v1",
    ],
)  # fmt: skip
def test_what_is_no_upstream_is_said_to_be_none(text: str) -> None:
    wanted = (
        r"accepted: a base URL as https://api\.example\.com/v1, or infron|did you mean (openai|https://api\.openai\.)"
    )
    with pytest.raises(ConfigError, match=wanted) as error:
        parsing.parse_upstream(text)
    assert "pass" not in str(error.value)


MEANT = {
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


@pytest.mark.parametrize(("text", "meant"), MEANT.items())
def test_what_was_probably_meant_by_an_upstream_is_suggested(text: str, meant: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsing.parse_upstream(text)
    assert f"; did you mean {meant}?" in str(error.value)
    assert parsing.parse_upstream(meant).base_url == meant


@pytest.mark.parametrize(
    "text", ["http://localhost:8000/v1 ", " http://localhost:8000/v1\n", "http://localhost:8000/v1/"]
)
def test_white_space_around_an_upstream_and_a_slash_at_its_end_do_not_matter(text: str) -> None:
    assert parsing.parse_upstream(text).base_url == "http://localhost:8000/v1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://h/v1/embeddings/", "'https://h/v1/embeddings' has /embeddings at its end, which is not part of the"
                                     " base URL; say https://h/v1"),
        ("https://h/v1/chat/completions", "has /chat/completions at its end, which is not part of the base URL; say"
                                          " https://h/v1"),
        ("https://h/v1/completions", "has /completions at its end"),
        ("https://h/v1/responses", "has /responses at its end"),
        ("http://localhost:7997/embeddings", "has /embeddings at its end, which is not part of the base URL; say"
                                             " http://localhost:7997"),
        ("https://me.openai.azure.com/openai/deployments/d/embeddings", "say https://me.openai.azure.com/openai/v1"),
    ],
)  # fmt: skip
def test_a_route_at_the_end_of_an_upstream_is_refused_with_the_base_url(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsing.parse_upstream(text)
    assert message in str(error.value)


def test_where_the_provider_is_known_the_suggestion_has_its_path() -> None:
    for provider, meant in {
        "infinity": "http://localhost:7997",
        "vllm": "http://localhost:7997/v1",
        "openrouter": "http://localhost:7997/api/v1",
    }.items():
        with pytest.raises(ConfigError, match=rf"did you mean {meant}\?$"):
            parsing.parse_upstream("localhost:7997", row=PROVIDERS[provider])


@pytest.mark.parametrize(
    "text", ["user:s3cret@localhost:8000", "http://h/s3cret@x?s3cret", "localhost:8000/v1?key=s3cret", "sk#s3cret.x:1"]
)
def test_a_suggestion_shows_no_secret(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsing.parse_upstream(text)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("memory:", StoreSetting()),
        ("sqlite:////var/cache/e.db", StoreSetting(path=Path("/var/cache/e.db"))),
        ("sqlite:///e.db", StoreSetting(path=Path("e.db"))),
        ("redis://h:6379/0", StoreSetting(url="redis://h:6379/0")),
        ("rediss://u:p@h", StoreSetting(url="rediss://u:p@h")),
        ("unix:///run/redis.sock?db=1", StoreSetting(url="unix:///run/redis.sock?db=1")),
        ("redis+cluster://a,b:7000", StoreSetting(url="redis+cluster://a,b:7000")),
        ("rediss+sentinel://a,b:1/m/0", StoreSetting(url="rediss+sentinel://a,b:1/m/0")),
    ],
)
def test_stores(text: str, setting: StoreSetting) -> None:
    assert parsing.parse_store(text) == setting


@pytest.mark.parametrize(
    "text",
    ["", "memory", "memory:x", "sqlite://", "sqlite:///", "redis://", "redis:h", "unix://", "mysql://h", "redis://h:x"],
)
def test_what_is_no_store_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a store; accepted: memory:"):
        parsing.parse_store(text)


@pytest.mark.parametrize(
    "text",
    ["redis://h?foo=bar", "redis://h?db=abc", "redis://h/x", "redis://h?socket_timeout=1", "sqlite:///~nosuchuser/x",
     "sqlite:////tmp/a\0b"],
)  # fmt: skip
def test_what_would_only_fail_later_is_refused_at_once(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a store"):
        parsing.parse_store(text)


@pytest.mark.parametrize("url", ["redis://u:s3cret@h:1/0", "redis://:a@s3cret@h:1/0"])
def test_a_store_that_is_shown_keeps_its_password_to_itself(url: str) -> None:
    assert str(parsing.parse_store(url)) == "redis://…@h:1/0"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rediss+cluster://u:s3cret@a:1,b:2", "rediss+cluster://…@a:1,b:2"),
        ("redis+sentinel://:s3cret@a,b/m/0?sentinel_password=s3cret", "redis+sentinel://…@a,b/m/0?…"),
    ],
)
def test_several_servers_are_shown_without_their_passwords(url: str, shown: str) -> None:
    assert str(parsing.parse_store(url)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "redis://u:s3cret@h:x/0", "redis:/:s3cret@host", "redis://h?password=s3cret",
        "redis+sentinel://a/m?sentinel_password=x@s3cret", "redis+cluster://u:s3cret@a?b@c",
    ],
)  # fmt: skip
def test_a_store_that_is_refused_keeps_its_password_to_itself(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsing.parse_store(text)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("text", ["https://user:s3cret@h/v1", "https://h/v1?key=s3cret", "htps://u:s3cret@h"])
def test_an_upstream_that_is_refused_keeps_its_password_to_itself(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsing.parse_upstream(text)
    assert "s3cret" not in str(refused.value)


def test_a_store_limit_too_small_to_be_meant() -> None:
    assert parsing.parse_store_limit("16MiB") == 16 * 1024**2
    with pytest.raises(ConfigError, match="16MiB or more"):
        parsing.parse_store_limit("1MiB")


@pytest.mark.parametrize(
    ("text", "url", "authorization"),
    [
        ("http://proxy.corp:3128", "http://proxy.corp:3128", None),
        ("HTTPS://proxy.corp/", "https://proxy.corp", None),
        ("http://[fd00::1]:3128", "http://[fd00::1]:3128", None),
        ("http://user:pass@proxy:3128", "http://proxy:3128", "Basic dXNlcjpwYXNz"),
        ("http://u:p%40ss%3A%2F@proxy:3128", "http://proxy:3128", "Basic dTpwQHNzOi8="),
        ("http://u:p@ss@proxy:3128", "http://proxy:3128", "Basic dTpwQHNz"),
        ("http://caf%C3%A9:x@proxy:3128", "http://proxy:3128", "Basic Y2Fmw6k6eA=="),  # UTF-8, RFC 7617 §2.1
        ("http://user@proxy:3128", "http://proxy:3128", "Basic dXNlcjo="),
    ],
)
def test_forward_proxies(text: str, url: str, authorization: str | None) -> None:
    proxy = parse_proxy(text)
    assert proxy is not None
    assert (proxy.url, proxy.authorization) == (url, authorization)
    assert authorization is None or authorization not in repr(proxy)


def test_what_a_file_or_a_variable_says_of_the_way_out_can_be_undone() -> None:
    assert parse_proxy("none") is None
    assert parsing.parse_file(" None") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("proxy.corp:3128", "'proxy.corp:3128' is not a forward proxy; did you mean http://proxy.corp:3128?"),
        ("proxy", "'proxy' is not a forward proxy; did you mean http://proxy?"),
        ("socks5://u:s3cret@proxy:1080", "'socks5://…@proxy:1080' is not a forward proxy; SOCKS is not supported"),
        ("http://u:s3c/ret@proxy:3128", "'http://…@proxy:3128' is not a forward proxy; accepted: http://host:port"),
        ("http://u:s3c#ret@proxy:3128", "percent-encode what is no letter or digit"),
        ("http://u:s3c?ret@proxy:3128", "'http://…@proxy:3128' is not a forward proxy"),
        ("u:s3cret@proxy:3128", "'…@proxy:3128' is not a forward proxy"),
        ("http://u:s3cret@proxy:3128/path", "'http://…@proxy:3128' is not a forward proxy"),
        ("http://proxy:3128?key=s3cret", "'http://proxy:3128' is not a forward proxy"),
        ("http://u%3As:s3cret@proxy", "the user of a forward proxy has a colon in it"),
        ("http://u:s3cret%0d%0aX@proxy", "or the password a control character"),
        ("http://proxy:port", "'http://proxy:port' is not a forward proxy"),
        ("http://pr oxy:3128", "is not a forward proxy"),
        ("ftp://proxy:3128", "is not a forward proxy; accepted: http://host:port or https://host:port, with user:"),
        ("", "'' is not a forward proxy"),
    ],
)
def test_what_is_no_forward_proxy_is_said_to_be_none_without_its_password(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_proxy(text)
    assert message in str(error.value)
    assert "s3c" not in str(error.value)


def test_neutral_headers() -> None:
    assert parsing.parse_neutral_headers("X-Plan, x-session") == {"x-plan", "x-session"}


@pytest.mark.parametrize(
    "name",
    ["Authorization", "Proxy-Authorization", "api-key", "X-Api-Key", "apikey", "x_api_key", "X-Goog-Api-Key",
     "x-litellm-api-key", "Ocp-Apim-Subscription-Key", "X-Auth-Token", "Helicone-Auth", "X-Portkey-Virtual-Key",
     "x-bf-vk", "CF-Access-Client-Secret", "X-Password", "Cookie"],
)  # fmt: skip
def test_a_credential_can_not_be_declared_neutral(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"authenticates clients, so entries would be shared across credentials; .* --share all"
    ):
        parsing.parse_neutral_headers(f"X-Plan, {name}")


@pytest.mark.parametrize("name", ["Content-Digest", "X-Amz-Content-SHA256"])
def test_what_vouches_for_the_body_can_not_be_declared_neutral(name: str) -> None:
    with pytest.raises(ConfigError, match="vouches for the body"):
        parsing.parse_neutral_headers(name)


def test_header_names() -> None:
    assert parsing.parse_header_names("X-Route, x-user") == {"x-route", "x-user"}
    for wrong in ("", "a b", "x-a,", "x:", "ü"):
        with pytest.raises(ConfigError, match="is not the name of a header field; accepted: names as X-Route, X-User"):
            parsing.parse_header_names(wrong)
