"""Request targets: equivalent paths, models in paths, and paths of embeddings calls (pure).

A target is in origin form (RFC 9112 §3.2.1): ``/path?query``.
"""

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

# RFC 3986 §2.3: letters, digits, "-", ".", "_" and "~" mean the same with and without percent-encoding.
_ENCODED_UNRESERVED = re.compile(r"%(2[DE]|3[0-9]|4[1-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9AE])", re.IGNORECASE)
_SLASHES = re.compile(r"/{2,}")
_DOT_SEGMENT = re.compile(r"/\.{1,2}(?![^/])")
_REFERENCE = re.compile(r"(?:([^:/?#]+):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL)  # RFC 3986 appendix B
_AUTHORITY = re.compile(r"(?:.*@)?(.*?)(?::([0-9]{0,5}))?", re.DOTALL)
_PORTS = {"http": 80, "https": 443}

# https://learn.microsoft.com/azure/ai-services/openai/reference: the deployment determines the model, not the body.
# OpenAI's clients before 1.0 put the model after /engines; LiteLLM, one-api and LocalAI still serve that path. In
# Docker Model Runner's /engines/v1/embeddings and /engines/llama.cpp/v1/embeddings, no segment is a model.
_NAMED = re.compile(
    r".*?/(?:deployments/(?P<deployment>[^/]+)|engines/(?P<engine>(?:[^/]+/)?(?!v[0-9]+/)[^/]+))/embeddings"
)
# The model in the paths of other APIs: Bedrock /model/M/invoke, Gemini /models/M:embedContent, Hugging Face
# /models/M/pipeline/feature-extraction and /pipeline/feature-extraction/M.
_MODEL = re.compile(
    r".*/(?:(?:deployments|model)/([^/]+)/.*|models/([^/]+(?:/[^/]+)?)(?::[^/:]+|/pipeline/.*)"
    r"|feature-extraction/([^/]+(?:/[^/]+)?))"
)
# Cohere /v2/embed, Ollama /api/embed, TEI /embed_all, llama.cpp /embedding, Gemini :batchEmbedContents, Voyage
# /multimodalembeddings, Bedrock /model/amazon.titan-embed-text-v2:0/invoke, vLLM /pooling, Jina /multi-vector, …
_EMBEDS = re.compile(r"embed(?!ded)|feature-extraction|/pooling(?![^/])|multi-?vector", re.IGNORECASE)
_MAX_DECODINGS = 3
# Segments that may be logged; any other could be a secret.
_PLAIN_SEGMENT = re.compile(
    r"v[0-9]{1,2}(alpha|beta)?[0-9]?|api|openai|engines|deployments|models?|inference|compatibility|pipeline"
    r"|[a-z_-]{0,20}embed[a-z_-]{0,20}|feature-extraction|pooling|multi-?vector",
    re.IGNORECASE,
)


def normalized(path: str) -> str:
    """The path with percent-encoded unreserved characters decoded (RFC 3986 §6.2.2.2), repeated slashes collapsed and
    the last slash dropped. Servers treat such variants alike or redirect them; other escapes, such as %2F, stay."""
    if "%" in path:
        path = _ENCODED_UNRESERVED.sub(lambda match: chr(int(match[1], 16)), path)
    if "//" in path:
        path = _SLASHES.sub("/", path)
    return path.rstrip("/") or "/"


def split(target: str) -> tuple[str, str]:
    """Path and query, the latter with its ``?`` unless it is empty. A fragment is dropped; it is never forwarded."""
    path, _, query = target.partition("#")[0].partition("?")
    return path, f"?{query}" if query else ""


def has_dot_segments(path: str) -> bool:
    """Whether a `normalized` path has ``.`` or ``..`` segments, which only some servers resolve."""
    return _DOT_SEGMENT.search(path) is not None


def without_dot_segments(path: str) -> str:
    """An absolute path with dot segments resolved (RFC 3986 §5.2.4). An encoded dot counts as a dot, as in browsers."""
    kept: list[str] = []
    plain = ""
    for segment in path.split("/")[1:]:
        plain = segment.replace("%2e", ".").replace("%2E", ".")
        if plain == "..":
            del kept[-1:]
        elif plain != ".":
            kept.append(segment)
    if plain in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)


class Reference(NamedTuple):
    """The parts of a URL. ``query`` and ``fragment`` include their delimiter if present."""

    scheme: str
    authority: str
    path: str
    query: str
    fragment: str

    @property
    def origin(self) -> tuple[str, str, int | None]:
        """Scheme, host and port, equal for URLs of the same origin (RFC 6454 §4). User information is ignored."""
        match = _AUTHORITY.fullmatch(self.authority)
        host, port = (match[1], match[2]) if match is not None else (self.authority, None)
        scheme = self.scheme.lower()
        return scheme, host.lower(), int(port) if port else _PORTS.get(scheme)

    @property
    def address(self) -> str:
        """The part that may be logged: without user information and query."""
        shown = f"{self.scheme}://{self.authority.rpartition('@')[2]}{self.path}"
        return "".join(letter if "!" <= letter <= "~" else "?" for letter in shown[:200])


def resolve(url: str, reference: str) -> Reference:
    """``reference`` resolved against ``url`` (RFC 3986 §5.2). An http or https URL then has an absolute path."""
    base, given = _reference(url), _reference(reference)
    if not given.scheme:
        given = given._replace(scheme=base.scheme)
        if not given.authority:
            given = given._replace(authority=base.authority)
            if not given.path:
                given = given._replace(path=base.path, query=given.query or base.query)
            elif not given.path.startswith("/"):
                given = given._replace(path=base.path.rpartition("/")[0] + "/" + given.path)
    return given._replace(path=without_dot_segments(given.path)) if given.authority else given


def _reference(text: str) -> Reference:
    match = _REFERENCE.fullmatch(text)
    assert match is not None  # noqa: S101 - it matches any text
    return Reference(*(part or "" for part in match.groups()))


class PathModel(NamedTuple):
    """The model or Azure deployment that an embeddings path names. A deployment's name says nothing about the model."""

    name: str
    is_deployment: bool

    @property
    def model(self) -> str | None:
        return None if self.is_deployment else self.name


def parse_path_model(target: str) -> PathModel | None:
    match = _NAMED.fullmatch(normalized(split(target)[0]))
    if match is None or match.lastgroup is None:
        return None
    return PathModel(unquote(match[match.lastgroup]), match.lastgroup == "deployment")


def with_path_model(target: str, name: str) -> str:
    """The target with the name that `parse_path_model` finds replaced by ``name``."""
    path, query = split(target)
    path = normalized(path)
    match = _NAMED.fullmatch(path)
    if match is None or match.lastgroup is None:
        return target
    start, end = match.span(match.lastgroup)
    return f"{path[:start]}{quote(name, safe='')}{path[end:]}{query}"


def model_in_path(target: str) -> str | None:
    """The model in a path of an API that is not OpenAI's."""
    match = _MODEL.fullmatch(normalized(split(target)[0]))
    return unquote(next(filter(None, match.groups()))) if match is not None else None


def is_embeddings_like(target: str) -> bool:
    """Whether a POST to ``target`` may contain texts to embed, in any API and with any percent-encoding."""
    path = target.partition("?")[0]
    for _ in range(_MAX_DECODINGS):
        path = unquote(path)
    return _EMBEDS.search(path) is not None


def loggable_path(target: str) -> str:
    """The path without segments that are not common in API paths, because those could be secrets."""
    segments = normalized(split(target)[0]).split("/")[1:]
    words = [segment if _PLAIN_SEGMENT.fullmatch(segment) else "…" for segment in segments[-8:]]
    return "/" + "/".join(words)
