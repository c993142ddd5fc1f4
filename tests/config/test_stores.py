from pathlib import Path

import pytest

from proxy.config.settings import StoreSetting
from proxy.config.stores import parse_store, parse_store_limit
from proxy.errors import ConfigError


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
def test_a_store_is_named_by_its_url(text: str, setting: StoreSetting) -> None:
    assert parse_store(text) == setting


@pytest.mark.parametrize(
    "text",
    ["", "memory", "memory:x", "sqlite://", "sqlite:///", "redis://", "redis:h", "unix://", "mysql://h", "redis://h:x"],
)
def test_invalid_stores_are_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a store; accepted: memory:"):
        parse_store(text)


@pytest.mark.parametrize(
    "text",
    ["redis://h?foo=bar", "redis://h?db=abc", "redis://h/x", "redis://h?socket_timeout=1", "sqlite:///~nosuchuser/x",
     "sqlite:////tmp/a\0b"],
)  # fmt: skip
def test_stores_that_would_fail_later_are_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a store"):
        parse_store(text)


@pytest.mark.parametrize("url", ["redis://u:s3cret@h:1/0", "redis://:a@s3cret@h:1/0"])
def test_a_store_is_shown_without_its_password(url: str) -> None:
    assert str(parse_store(url)) == "redis://…@h:1/0"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rediss+cluster://u:s3cret@a:1,b:2", "rediss+cluster://…@a:1,b:2"),
        ("redis+sentinel://:s3cret@a,b/m/0?sentinel_password=s3cret", "redis+sentinel://…@a,b/m/0?…"),
    ],
)
def test_several_servers_are_shown_without_their_passwords(url: str, shown: str) -> None:
    assert str(parse_store(url)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "redis://u:s3cret@h:x/0", "redis:/:s3cret@host", "redis://h?password=s3cret",
        "redis+sentinel://a/m?sentinel_password=x@s3cret", "redis+cluster://u:s3cret@a?b@c",
    ],
)  # fmt: skip
def test_the_error_for_a_store_shows_no_password(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_store(text)
    assert "s3cret" not in str(refused.value)


def test_a_store_limit_below_the_minimum_is_rejected() -> None:
    assert parse_store_limit("16MiB") == 16 * 1024**2
    with pytest.raises(ConfigError, match="16MiB or more"):
        parse_store_limit("1MiB")
