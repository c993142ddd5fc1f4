"""Errors that an upstream writes into the body of a response with status 200 (pure)."""

from http import HTTPStatus
from typing import Any

import orjson

_LOWEST_ERROR = 300  # a code in an error object below this is not a status
MAX_ERROR_BYTES = 64 * 1024  # a longer body is not an error


def parsed(body: bytes) -> Any:
    """An error's body as JSON; None if it is too long for an error, or not JSON."""
    if len(body) > MAX_ERROR_BYTES:
        return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def error_status(body: bytes, status: int = HTTPStatus.OK.value) -> int:
    """The status of the error inside a 2xx, as OpenRouter sends it; ``status`` if there is no error."""
    if len(body) > MAX_ERROR_BYTES or b'"error"' not in body:
        return status
    response = parsed(body)
    error = response.get("error") if type(response) is dict else None
    if not error:
        return status
    code = error.get("code") if type(error) is dict else None
    return code if type(code) is int and code >= _LOWEST_ERROR else HTTPStatus.BAD_REQUEST.value


def is_error(body: bytes) -> bool:
    """Whether a 200 is an error."""
    return error_status(body) != HTTPStatus.OK
