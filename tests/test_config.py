from pathlib import Path

import pytest

from proxy import config
from proxy.config import StoreSetting, UpstreamSetting
from proxy.errors import ConfigError
from proxy.providers import PROVIDERS


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
    assert config.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "9" * 400, "1 TiBs", "1e9", "12 bananas", "MiB"])
def test_what_is_no_size_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a size; accepted: .*512MiB"):
        config.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30d", 30 * 86400), ("1.5h", 5400), ("250ms", 0.25), ("None", None)]
)
def test_durations(text: str, seconds: float | None) -> None:
    assert config.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-5s", "3 fortnights"])
def test_what_is_no_duration_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError, match="none"):
        config.parse_duration(text)


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
    assert config.parse_upstream(text) == setting


def test_the_five_named_systems_and_openai_are_presets() -> None:
    for name in ("infron", "openrouter", "apertis", "aigne", "nemorouter", "openai"):
        assert config.parse_upstream(name).base_url.startswith("https://")


def test_a_provider_without_an_address_needs_one() -> None:
    with pytest.raises(ConfigError, match="azure has no address of its own; give its base URL, and azure as the prov"):
        config.parse_upstream("azure")
    azure = config.parse_upstream("https://me.openai.azure.com", row=PROVIDERS["azure"])
    assert azure == UpstreamSetting(
        name="me.openai.azure.com", base_url="https://me.openai.azure.com", provider=PROVIDERS["azure"]
    )


def test_the_demo_is_an_upstream() -> None:
    assert config.parse_upstream("demo").is_demo


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
        config.parse_upstream(text)
    assert "pass" not in str(error.value)


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
    assert config.parse_store(text) == setting


@pytest.mark.parametrize(
    "text",
    ["", "memory", "memory:x", "sqlite://", "sqlite:///", "redis://", "redis:h", "unix://", "mysql://h", "redis://h:x"],
)
def test_what_is_no_store_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a store; accepted: memory:"):
        config.parse_store(text)


@pytest.mark.parametrize(
    "text",
    ["redis://h?foo=bar", "redis://h?db=abc", "redis://h/x", "redis://h?socket_timeout=1", "sqlite:///~nosuchuser/x",
     "sqlite:////tmp/a\0b"],
)  # fmt: skip
def test_what_would_only_fail_later_is_refused_at_once(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a store"):
        config.parse_store(text)


@pytest.mark.parametrize("url", ["redis://u:s3cret@h:1/0", "redis://:a@s3cret@h:1/0"])
def test_a_store_that_is_shown_keeps_its_password_to_itself(url: str) -> None:
    assert str(config.parse_store(url)) == "redis://…@h:1/0"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rediss+cluster://u:s3cret@a:1,b:2", "rediss+cluster://…@a:1,b:2"),
        ("redis+sentinel://:s3cret@a,b/m/0?sentinel_password=s3cret", "redis+sentinel://…@a,b/m/0?…"),
    ],
)
def test_several_servers_are_shown_without_their_passwords(url: str, shown: str) -> None:
    assert str(config.parse_store(url)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "redis://u:s3cret@h:x/0", "redis:/:s3cret@host", "redis://h?password=s3cret",
        "redis+sentinel://a/m?sentinel_password=x@s3cret", "redis+cluster://u:s3cret@a?b@c",
    ],
)  # fmt: skip
def test_a_store_that_is_refused_keeps_its_password_to_itself(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.parse_store(text)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("text", ["https://user:s3cret@h/v1", "https://h/v1?key=s3cret", "htps://u:s3cret@h"])
def test_an_upstream_that_is_refused_keeps_its_password_to_itself(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config.parse_upstream(text)
    assert "s3cret" not in str(refused.value)


def test_a_store_limit_too_small_to_be_meant() -> None:
    assert config.parse_store_limit("16MiB") == 16 * 1024**2
    with pytest.raises(ConfigError, match="16MiB or more"):
        config.parse_store_limit("1MiB")


def test_neutral_headers() -> None:
    assert config.parse_neutral_headers("X-Plan, x-session") == {"x-plan", "x-session"}


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
        config.parse_neutral_headers(f"X-Plan, {name}")


@pytest.mark.parametrize("name", ["Content-Digest", "X-Amz-Content-SHA256"])
def test_what_vouches_for_the_body_can_not_be_declared_neutral(name: str) -> None:
    with pytest.raises(ConfigError, match="vouches for the body"):
        config.parse_neutral_headers(name)


def test_header_names() -> None:
    assert config.parse_header_names("X-Route, x-user") == {"x-route", "x-user"}
    for wrong in ("", "a b", "x-a,", "x:", "ü"):
        with pytest.raises(ConfigError, match="is not the name of a header field; accepted: names as X-Route, X-User"):
            config.parse_header_names(wrong)
