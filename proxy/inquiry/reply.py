"""An upstream's reply to one question, and what it says (pure)."""

from http import HTTPStatus
from typing import Any, NamedTuple

import orjson
import pybase64

from proxy.protocol import error_body, vectors
from proxy.protocol.vectors import DType, InvalidVector

_MAX_MESSAGE_CHARS = 160
# Statuses that are about the request. Others may be different the next time, so they say nothing about what the
# upstream accepts.
_ABOUT_REQUEST = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.NOT_IMPLEMENTED,
    }
)


class Reply(NamedTuple):
    """``failure`` says why there is no response; then the other fields mean nothing."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    seconds: float
    failure: str = ""


class Embeddings(NamedTuple):
    """Vectors in the order of the items, each as the upstream wrote it: a list of numbers, or base64."""

    vectors: list[Any]
    model: str | None
    total_tokens: int | None
    has_id: bool

    @property
    def is_base64(self) -> bool:
        return all(type(vector) is str for vector in self.vectors)

    @property
    def dimensions(self) -> int:
        first = self.vectors[0]
        return len(pybase64.b64decode(first)) // 4 if type(first) is str else len(first)

    @property
    def dtype(self) -> DType | None:
        """How its numbers are written; None for base64."""
        return None if self.is_base64 else vectors.from_numbers(self.vectors[0]).dtype


class Refusal(NamedTuple):
    """No vectors. Unless it ``is_final``, another time there may be some."""

    message: str
    is_final: bool
    status: int = 0


Answer = Embeddings | Refusal


def read(reply: Reply, *, items: int) -> Answer:
    """What a reply to a request for ``items`` vectors says."""
    if reply.failure:
        return Refusal(reply.failure, is_final=False)
    if reply.status != HTTPStatus.OK:
        return Refusal(_message(reply), is_final=reply.status in _ABOUT_REQUEST, status=reply.status)
    try:
        body = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        return Refusal("200, but the body is not JSON", is_final=False, status=reply.status)
    if error_body.is_error(reply.body):
        return Refusal(f"200, but an error: {_text_of(body)}", is_final=True, status=reply.status)
    return _embeddings(body, items)


def _embeddings(body: Any, items: int) -> Answer:
    def unusable(why: str) -> Refusal:
        return Refusal(f"200, but {why}", is_final=True, status=HTTPStatus.OK)

    data = body.get("data") if type(body) is dict else None
    if type(data) is not list or not all(type(datum) is dict for datum in data):
        return unusable("no list of embeddings")
    if len(data) != items:
        return unusable(f"{len(data)} vectors for {items} item{'s' if items > 1 else ''}")
    indexes = [datum.get("index", number) for number, datum in enumerate(data)]
    if not all(type(index) is int for index in indexes) or sorted(indexes) != list(range(items)):
        return unusable("the indexes of the vectors are not 0, 1, …")
    ordered = [datum.get("embedding") for _, datum in sorted(zip(indexes, data, strict=True), key=lambda pair: pair[0])]
    try:
        for vector in ordered:
            _check(vector)
    except InvalidVector as error:
        return unusable(f"a vector is {error}")
    usage = body.get("usage")
    tokens = usage.get("total_tokens", usage.get("prompt_tokens")) if type(usage) is dict else None
    model = body.get("model")
    return Embeddings(
        ordered,
        model if type(model) is str else None,
        tokens if type(tokens) is int else None,
        type(body.get("id")) is str,
    )


def _check(vector: Any) -> None:
    """Raises `InvalidVector`."""
    if type(vector) is str:
        vectors.from_base64(vector)
    elif type(vector) is list:
        vectors.from_numbers(vector)
    else:
        raise InvalidVector("neither numbers nor base64")


def _message(reply: Reply) -> str:
    try:
        said = _text_of(orjson.loads(reply.body))
    except orjson.JSONDecodeError:
        said = reply.body.decode(errors="replace")
    location = next((value for name, value in reply.headers if name.lower() == "location"), "")
    return f"{reply.status}: {_short(f'redirects to {location}' if location else said)}"


def _text_of(body: Any) -> str:
    """The message of an error, wherever it is."""
    value = body
    for name in ("error", "message", "detail", "msg"):
        if type(value) is list and value:
            value = value[0]
        if type(value) is dict and name in value:
            value = value[name]
    return _short(value if type(value) is str else orjson.dumps(value).decode())


def _short(text: str) -> str:
    """One printable line: the terminal would obey control characters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= _MAX_MESSAGE_CHARS else line[: _MAX_MESSAGE_CHARS - 1] + "…"
