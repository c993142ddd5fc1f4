"""Base URLs as operators write them: checks, and a suggestion in place of an invalid one (pure)."""

import difflib
import re
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

USUAL_PATH = "/v1"

# A URL within pasted text: in quotes, in angle brackets, after OPENAI_BASE_URL=, before a comma. It ends at the first
# character that no URL has.
_QUOTES = "\"'`<>\u201c\u201d\u2018\u2019"
_PASTED = re.compile(rf"[a-z][a-z0-9+.-]*:/{{1,3}}[^\s{_QUOTES}]+", re.IGNORECASE)
_WRAPPING = _QUOTES + " \t\r\n,;\u00a0\u200b\ufeff"
# http:/host, http:host, http//host, http;//host, //host; but not http:8000, which is a host and a port.
_BROKEN_SCHEME = re.compile(r"(?:(https?)(?:[:;]+/*(?!/|\d+$)|/{2,})|/{2,})(?=[^/])", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):/{1,3}", re.IGNORECASE)
_HOST = r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?\.?)"
_AUTHORITY = re.compile(_HOST + r"(?::(?P<port>\d{1,5}))?", re.IGNORECASE)
# Routes of an API, which clients append to the base URL. Not `/models`: a base URL may end in that.
_ROUTE = re.compile(r"/(embeddings|(chat/)?completions|responses)$")
# Azure's portal shows the URL of one deployment's route. The base URL of all deployments has this path.
_AZURE_ROUTE, _AZURE_PATH = re.compile(r"/openai/deployments/[^/]+/(embeddings|(chat/)?completions)$"), "/openai/v1"
_AZURE_HOSTS = (".openai.azure.com", ".cognitiveservices.azure.com")
_PRIVATE = ("localhost", ".local", ".internal", ".lan", ".svc", ".cluster.local", ".home.arpa", ".test")
_TLS_PORTS = frozenset({None, "443", "8443"})


def redacted(url: str) -> str:
    """The URL without user, password and query, however malformed."""
    # A ? before the last @ may be part of a password, or the password part of a query.
    shown = re.sub(r"(?<=:).*\?.*@.*", "//…", url, flags=re.DOTALL)
    shown = re.sub(r"(?<=:).*@", "//…@", shown, flags=re.DOTALL)
    return re.sub(r"([?#]).*", r"\1…", shown, flags=re.DOTALL)


def split(url: str) -> SplitResult | None:
    """The parts of an absolute http or https URL; None for anything else."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a number up to 65535
    except ValueError:
        return None
    return parts if parts.scheme in {"http", "https"} and parts.hostname else None


def is_plain(url: str) -> bool:
    """Whether a URL is only scheme, host, port and path, in ASCII, without quotes or other text around it."""
    parts = split(url)
    if parts is None or not url.isascii() or re.search(r"[\s\"'`<>\\]|[,;]$", url):
        return False
    return not (parts.query or parts.fragment or "@" in parts.netloc)


def route_of(url: str, path: str) -> str:
    """The API's route at the end of ``url``, or "" if there is none. ``path`` counts as a route, too."""
    match = _ROUTE.search(url)
    return path if url.endswith(path) else match[0] if match else ""


def without_route(url: str, path: str = "") -> str:
    """``url`` without the route that `route_of` finds."""
    return _ROUTE.sub("", _AZURE_ROUTE.sub(_AZURE_PATH, url)).removesuffix(path)


def suggest(text: str, *, path: str = USUAL_PATH, known: Iterable[str] = ()) -> str | None:
    """The base URL probably intended by ``text``, which is not one; None if there is no good guess.

    ``path`` is the usual path of such an API, and ``known`` are the base URLs of APIs with another path. The result has
    no user, password or query.
    """
    pasted = _PASTED.search(text)
    rest = (text if pasted is None else pasted[0]).strip(_WRAPPING)
    scheme, rest = _scheme(rest)
    authority, slash, tail = re.split(r"[?#]", rest)[0].partition("/")
    match = _AUTHORITY.fullmatch(authority)
    if match is None or "@" in tail or (scheme is None and not _is_host(match)):
        return None
    scheme = scheme or ("http" if _is_private(match["host"]) or match["port"] not in _TLS_PORTS else "https")
    own = f"{scheme}://{authority}"
    tail = without_route((slash + tail).rstrip("/"))
    where = next((base for base in known if base.startswith(f"{own}/")), None)
    if where is not None and not f"{own}{tail}/".startswith(f"{where}/"):
        return where
    url = own + (tail or (_AZURE_PATH if match["host"].endswith(_AZURE_HOSTS) else path))
    return url if is_plain(url) else None


def _scheme(text: str) -> tuple[str | None, str]:
    """The scheme at the start of ``text``, corrected if it is close to http or https, and the rest."""
    if broken := _BROKEN_SCHEME.match(text):
        return (broken[1] and broken[1].lower()), text[broken.end() :]
    match = _SCHEME.match(text)
    if match is None:
        return None, text
    name = {"ws": "http", "wss": "https"}.get(match[1].lower(), match[1].lower())
    near = difflib.get_close_matches(name, ("http", "https"), n=1)
    return (near[0], text[match.end() :]) if near else (None, text)


def _is_host(match: re.Match[str]) -> bool:
    """Whether this is a host, and not a word that names something else."""
    host = match["host"].lower()
    return match["port"] is not None or "." in host.strip(".") or host == "localhost" or host.startswith("[")


def _is_private(host: str) -> bool:
    """Whether a server at ``host`` probably has no certificate: this machine, a private network, no domain."""
    host = host.lower().strip("[].")
    try:
        address = ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE)
    return not address.is_global
