import pytest

from proxy.cache.redis import redis_url
from proxy.cache.redis.redis_url import Kind, Login, RedisURL

LOGIN = Login(user="u", password="p@/?#")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("redis://h", RedisURL(kind=Kind.ONE, addresses=(("h", 6379),))),
        ("rediss://u:p%40%2F%3F%23@h:1/2", RedisURL(
            kind=Kind.ONE, addresses=(("h", 1),), is_tls=True, login=LOGIN, database=2)),
        ("redis://:p@[::1]:1?db=3", RedisURL(
            kind=Kind.ONE, addresses=(("::1", 1),), login=Login(password="p"), database=3)),
        ("unix://u:p%40%2F%3F%23@/run/redis.sock?db=1", RedisURL(
            kind=Kind.ONE, addresses=(("/run/redis.sock", 0),), login=LOGIN, database=1)),
        ("redis+cluster://a,b:7000,[::1],[fe80::1]:7001", RedisURL(
            kind=Kind.CLUSTER, addresses=(("a", 6379), ("b", 7000), ("::1", 6379), ("fe80::1", 7001)))),
        ("rediss+cluster://u:p%40%2F%3F%23@a.example:7000/0", RedisURL(
            kind=Kind.CLUSTER, addresses=(("a.example", 7000),), is_tls=True, login=LOGIN)),
        ("redis+sentinel://a,b:1/mymaster", RedisURL(
            kind=Kind.SENTINEL, addresses=(("a", 26379), ("b", 1)), master="mymaster")),
        ("rediss+sentinel://:p@a/my%20master/4?sentinel_username=u&sentinel_password=p%40%2F%3F%23", RedisURL(
            kind=Kind.SENTINEL, addresses=(("a", 26379),), is_tls=True, login=Login(password="p"), database=4,
            master="my master", sentinel_login=LOGIN)),
    ],
)  # fmt: skip
def test_a_url_names_servers_database_and_login(text: str, url: RedisURL) -> None:
    assert redis_url.parse(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "", "redis://", "redis://h:0", "redis://h:99999", "redis://h/x", "redis://h/٣", "redis://h?foo=1",
        "redis://h#x", "redis://[::1", "unix://h/x", "redis+cluster://", "redis+cluster://a,", "redis+cluster://a:0",
        "redis+cluster://a:70000", "redis+cluster://a/1", "redis+cluster://a?sentinel_password=x",
        "redis+cluster://a b",         "redis+cluster://::1", "redis+sentinel://a", "redis+sentinel://a/", "redis+sentinel://a/m/x",
        "redis+sentinel://a/m?db=1", "redis+sentinel://a/m?sentinel_password=x@y", "redis+ssl://a", "unix+cluster:///x",
    ],
)  # fmt: skip
def test_an_invalid_url_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - it says nothing on purpose: there may be a password in it
        redis_url.parse(text)


def test_the_repr_has_no_passwords() -> None:
    url = redis_url.parse("redis+sentinel://u:c4nary@a/m?sentinel_password=c4nary")
    assert "c4nary" not in repr(url)
