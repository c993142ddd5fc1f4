import pytest

from proxy.config.header_names import parse_header_names, parse_neutral_headers
from proxy.errors import ConfigError


def test_neutral_headers_are_names_in_lower_case() -> None:
    assert parse_neutral_headers("X-Plan, x-session") == {"x-plan", "x-session"}


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
        parse_neutral_headers(f"X-Plan, {name}")


@pytest.mark.parametrize("name", ["Content-Digest", "X-Amz-Content-SHA256"])
def test_a_digest_of_the_body_can_not_be_declared_neutral(name: str) -> None:
    with pytest.raises(ConfigError, match="vouches for the body"):
        parse_neutral_headers(name)


def test_key_headers_are_names_and_nothing_else() -> None:
    assert parse_header_names("X-Route, x-user") == {"x-route", "x-user"}
    for wrong in ("", "a b", "x-a,", "x:", "ü"):
        with pytest.raises(ConfigError, match="is not the name of a header field; accepted: names as X-Route, X-User"):
            parse_header_names(wrong)
