import pytest

from proxy.config.paths import parse_file
from proxy.errors import ConfigError
from proxy.upstream.egress import parse_proxy


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
def test_a_forward_proxys_login_is_taken_from_its_url(text: str, url: str, authorization: str | None) -> None:
    proxy = parse_proxy(text)
    assert proxy is not None
    assert (proxy.url, proxy.authorization) == (url, authorization)
    assert authorization is None or authorization not in repr(proxy)


def test_none_removes_an_egress_option() -> None:
    assert parse_proxy("none") is None
    assert parse_file(" None") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("proxy.corp:3128", "'proxy.corp:3128' is not a forward proxy; did you mean http://proxy.corp:3128?"),
        ("proxy", "'proxy' is not a forward proxy; did you mean http://proxy?"),
        ("socks5://u:s3cret@proxy:1080", "'socks5://…@proxy:1080' is not a forward proxy; SOCKS is not supported"),
        ("http://u:s3c/ret@proxy:3128", "'http://…@proxy:3128' is not a forward proxy; accepted: http://host:port"),
        ("http://u:s3c#ret@proxy:3128", "percent-encode special characters in these"),
        ("http://u:s3c?ret@proxy:3128", "'http://…@proxy:3128' is not a forward proxy"),
        ("u:s3cret@proxy:3128", "'…@proxy:3128' is not a forward proxy"),
        ("http://u:s3cret@proxy:3128/path", "'http://…@proxy:3128' is not a forward proxy"),
        ("http://proxy:3128?key=s3cret", "'http://proxy:3128' is not a forward proxy"),
        ("http://u%3As:s3cret@proxy", "the forward proxy's user contains a colon"),
        ("http://u:s3cret%0d%0aX@proxy", "or its user or password a control character"),
        ("http://proxy:port", "'http://proxy:port' is not a forward proxy"),
        ("http://pr oxy:3128", "is not a forward proxy"),
        ("ftp://proxy:3128", "is not a forward proxy; accepted: http://host:port or https://host:port, with user:"),
        ("", "'' is not a forward proxy"),
    ],
)
def test_the_error_for_a_forward_proxy_shows_no_password(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_proxy(text)
    assert message in str(error.value)
    assert "s3c" not in str(error.value)
