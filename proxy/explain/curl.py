"""The request that a curl command line sends (pure). https://curl.se/docs/manpage.html"""

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from multidict import CIMultiDict

from proxy.explain.http_request import HTTPRequest, UnreadableRequest, target_of
from proxy.explain.shell_words import split_words

ReadFile = Callable[[str], bytes]

_VARIABLE = re.compile(r"\$(?:\{\w+\}|[A-Za-z_]\w*)")
_FORM = "application/x-www-form-urlencoded"
_JSON = "application/json"
# Options that the request depends on, by their short names too; each has a value.
_VALUES = {
    "-X": "request", "-H": "header", "-d": "data", "-u": "user", "-A": "user-agent", "-b": "cookie", "-e": "referer",
    "--request": "request", "--header": "header", "--data": "data", "--data-ascii": "data", "--data-raw": "data-raw",
    "--data-binary": "data-binary", "--json": "json", "--url": "url", "--user": "user", "--user-agent": "user-agent",
    "--cookie": "cookie", "--referer": "referer", "--oauth2-bearer": "bearer",
}  # fmt: skip
# What sends another body than JSON, or none.
_OTHER_BODIES = frozenset({"-F", "--form", "--data-urlencode", "-T", "--upload-file", "-G", "--get", "-I", "--head"})
# Other options with a value: it is skipped.
_SKIPPED = frozenset({
    "-c", "-C", "-D", "-E", "-K", "-m", "-o", "-P", "-Q", "-r", "-t", "-U", "-w", "-x", "-y", "-Y", "-z", "--cacert",
    "--capath", "--cert", "--cert-type", "--ciphers", "--config", "--connect-timeout", "--connect-to", "--cookie-jar",
    "--dump-header", "--interface", "--key", "--key-type", "--limit-rate", "--max-redirs", "--max-time", "--noproxy",
    "--output", "--pass", "--proxy", "--proxy-header", "--proxy-user", "--range", "--resolve", "--retry",
    "--retry-delay", "--retry-max-time", "--socks5", "--socks5-hostname", "--stderr", "--tls-max", "--trace",
    "--trace-ascii", "--unix-socket", "--write-out", "--keepalive-time", "--speed-limit", "--speed-time",
})  # fmt: skip
# Options without a value by their letters, which can be combined: -sSL.
_FLAGS = frozenset("#0123469BSLNZfgijklnpqsvaOJM")


@dataclass(slots=True)
class _Arguments:
    urls: list[str] = field(default_factory=list)
    method: str | None = None
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    removed: set[str] = field(default_factory=set)  # header fields that curl would add
    data: list[bytes] = field(default_factory=list)
    is_json: bool = False
    is_compressed: bool = False


def is_curl(text: str) -> bool:
    return re.match(r"\s*(\$\s+)?curl(\.exe)?\s", text) is not None


def parse_curl(command: str, read_file: ReadFile) -> HTTPRequest:
    """The request of a command. ``read_file`` reads the files that its data are in, and may raise `UnreadableRequest`.

    Raises `UnreadableRequest`.
    """
    words = split_words(command.strip().removeprefix("$ "))
    given = _Arguments()
    for name, value in _options(words[1:]):
        _take(given, name, value, read_file)
    if not given.urls:
        raise UnreadableRequest("the curl command has no URL")
    if not given.data and given.method != "POST":
        raise UnreadableRequest("the curl command sends no body; accepted: one with -d, --data-raw or --json")
    _add_curls_own(given)
    notes: tuple[str, ...] = ()
    if _VARIABLE.search(" ".join([*given.urls, *given.headers.values()])):
        notes = ("a shell variable of the command was taken literally; keys depend on its value",)
    joined = b"".join(given.data) if given.is_json else b"&".join(given.data)
    return HTTPRequest(
        method=given.method or "POST", target=target_of(given.urls[0]), headers=given.headers, body=joined, notes=notes
    )


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """The name and value of each option; "" is the name of a URL's. Raises `UnreadableRequest`."""
    left = iter(words)
    for word in left:
        if not word.startswith("-") or word == "-":
            yield "url", word
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            if name in _VALUES or name in _SKIPPED or name in _OTHER_BODIES:
                _forbid_other_body(name)
                value = value if equals else _next(left, word)
                if name in _VALUES:
                    yield _VALUES[name], value
            elif name == "--compressed":
                yield "compressed", ""
        else:
            yield from _short_options(word, left)


def _short_options(word: str, left: Iterator[str]) -> Iterator[tuple[str, str]]:
    for at, letter in enumerate(word[1:], start=2):
        name = f"-{letter}"
        _forbid_other_body(name)
        if name in _VALUES or name in _SKIPPED:
            value = word[at:] or _next(left, word)
            if name in _VALUES:
                yield _VALUES[name], value
            return
        if letter not in _FLAGS:
            raise UnreadableRequest(f"curl's option {name} is not known here; leave it out")


def _forbid_other_body(name: str) -> None:
    if name in _OTHER_BODIES:
        raise UnreadableRequest(f"curl's option {name} sends no JSON body; accepted: -d, --data-raw, --json")


def _next(left: Iterator[str], word: str) -> str:
    value = next(left, None)
    if value is None:
        raise UnreadableRequest(f"curl's option {word} has no value")
    return value


def _take(given: _Arguments, name: str, value: str, read_file: ReadFile) -> None:
    match name:
        case "url":
            given.urls.append(value)
        case "request":
            given.method = value.upper()
        case "header":
            _take_header(given, value, read_file)
        case "data" | "data-raw" | "data-binary" | "json":
            given.is_json = given.is_json or name == "json"
            given.data.append(_data(name, value, read_file))
        case "user":
            given.headers["Authorization"] = "Basic " + base64.b64encode(value.encode()).decode()
        case "bearer":
            given.headers["Authorization"] = f"Bearer {value}"
        case "compressed":
            given.is_compressed = True
        case "cookie" if "=" not in value:
            pass  # the name of a file with cookies
        case _:
            given.headers[name] = value


def _take_header(given: _Arguments, text: str, read_file: ReadFile) -> None:
    if text.startswith("@"):
        for line in read_file(text[1:]).decode(errors="surrogateescape").splitlines():
            _take_header(given, line, read_file)
        return
    name, colon, value = text.partition(":")
    if not colon:  # curl sends `X-Empty;` as an empty field, and ignores the rest
        if text.endswith(";"):
            given.headers.add(text[:-1], "")
    elif value.strip():
        given.headers.add(name.strip(), value.strip())
    else:
        given.removed.add(name.strip().lower())


def _data(name: str, value: str, read_file: ReadFile) -> bytes:
    if value.startswith("@") and name != "data-raw":
        content = read_file(value[1:])
        return content if name != "data" else content.replace(b"\r", b"").replace(b"\n", b"")
    return value.encode(errors="surrogateescape")


def _add_curls_own(given: _Arguments) -> None:
    """The header fields that curl adds to such a request, unless the command sets or removes them."""
    own = {"Accept": _JSON if given.is_json else "*/*", "Content-Type": _JSON if given.is_json else _FORM}
    if given.is_compressed:
        own["Accept-Encoding"] = "gzip, deflate"
    if not given.data:
        del own["Content-Type"]
    for name, value in own.items():
        if name not in given.headers and name.lower() not in given.removed:
            given.headers[name] = value
