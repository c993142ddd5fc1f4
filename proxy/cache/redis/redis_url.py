"""The URL of a Redis: one server, a cluster, or a master that Sentinel names (pure).

For one server the schemes are `redis`, `rediss` (both IANA's) and `unix` (redis-py's). `redis+cluster`,
`redis+sentinel` and the same with `rediss` for TLS are those of other Python libraries.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qsl, unquote, urlsplit

Address = tuple[str, int]  # host and port; or the path of a socket, and 0

_DEFAULT_PORT, _DEFAULT_SENTINEL_PORT, _MAX_PORT = 6379, 26379, 65535
_SEVERAL = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>cluster|sentinel)://"
    r"(?:(?P<login>[^/?#]*)@)?"
    r"(?P<hosts>[^@/?#]+)(?:/(?P<path>[^?#]*))?(?:\?(?P<query>[^@#]*))?"
)
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>\d{1,5}))?")


class Kind(Enum):
    ONE = "one"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Credentials of an ACL user; of the default user without ``user``. Without either no AUTH is sent."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisURL:
    kind: Kind
    addresses: tuple[Address, ...]  # of the server, of some nodes of the cluster, or of the sentinels
    is_tls: bool = False
    login: Login = field(default_factory=Login)
    database: int = 0
    master: str = ""  # its name in Sentinel's configuration
    sentinel_login: Login = field(default_factory=Login)


def parse(url: str) -> RedisURL:
    """Raises `ValueError`, whose message quotes nothing of the URL."""
    if match := _SEVERAL.fullmatch(url):
        return _several(match)
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if set(options) - {"db"} or parts.fragment:
        raise ValueError("the only option is db")
    login = _login(parts.username, parts.password)
    if parts.scheme == "unix" and parts.path and not parts.hostname:
        database = _database(options.get("db", ""))
        return RedisURL(kind=Kind.ONE, addresses=((unquote(parts.path), 0),), login=login, database=database)
    if parts.scheme in {"redis", "rediss"} and parts.hostname and parts.port != 0:
        return RedisURL(
            kind=Kind.ONE,
            addresses=((parts.hostname, parts.port or _DEFAULT_PORT),),
            is_tls=parts.scheme == "rediss",
            login=login,
            database=_database(options.get("db") or parts.path.removeprefix("/")),
        )
    raise ValueError("not a Redis URL")


def _several(match: re.Match[str]) -> RedisURL:
    is_sentinel = match["kind"] == "sentinel"
    options = dict(parse_qsl(match["query"] or "", keep_blank_values=True))
    if set(options) - ({"sentinel_username", "sentinel_password"} if is_sentinel else set()):
        raise ValueError("unknown option")
    master, _, database = (match["path"] or "").partition("/") if is_sentinel else ("", "", match["path"] or "")
    if is_sentinel and not master:
        raise ValueError("the master's name is missing")
    if not is_sentinel and _database(database) != 0:
        raise ValueError("a cluster has only database 0")
    user, _, password = (match["login"] or "").partition(":")
    default_port = _DEFAULT_SENTINEL_PORT if is_sentinel else _DEFAULT_PORT
    return RedisURL(
        kind=Kind(match["kind"]),
        addresses=tuple(_address(host, default_port) for host in match["hosts"].split(",")),
        is_tls=match["scheme"] == "rediss",
        login=_login(user, password),
        database=_database(database),
        master=unquote(master),
        sentinel_login=Login(user=options.get("sentinel_username"), password=options.get("sentinel_password")),
    )


def _address(text: str, default_port: int) -> Address:
    match = _HOST.fullmatch(text)
    if match is None:
        raise ValueError("not a host and port")
    port = int(match["port"] or default_port)
    if not 0 < port <= _MAX_PORT:
        raise ValueError("not a port")
    return match["ipv6"] or match["name"], port


def _database(text: str) -> int:
    if not re.fullmatch(r"\d*", text, re.ASCII):
        raise ValueError("not a database number")
    return int(text or 0)


def _login(user: str | None, password: str | None) -> Login:
    return Login(user=unquote(user) if user else None, password=unquote(password) if password else None)
