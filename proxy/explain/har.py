"""The requests in an HTTP Archive, as browsers and debugging proxies save them (pure).

http://www.softwareishard.com/blog/har-12-spec/
"""

import base64
from typing import Any

import orjson
from multidict import CIMultiDict

from proxy.explain.http_request import HTTPRequest, UnreadableRequest, target_of
from proxy.protocol.targets import is_embeddings_like

_SHAPE = 'accepted: an archive {"log": {"entries": […]}}, one entry {"request": {…}}, or one request'


def parse_har(content: bytes) -> list[HTTPRequest]:
    """The requests that may have texts to embed, in order. Raises `UnreadableRequest`."""
    try:
        document = orjson.loads(content.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise UnreadableRequest(f"not JSON: {error.msg}") from None
    requests = [_request(entry) for entry in _entries(document)]
    found = [request for request in requests if request.method == "POST" and is_embeddings_like(request.target)]
    if not found:
        raise UnreadableRequest(f"none of the {len(requests)} requests is a POST to an embeddings route")
    return found


def _entries(document: Any) -> list[Any]:
    match document:
        case {"log": {"entries": [*entries]}}:
            return entries
        case {"request": {"url": str()}} | {"url": str(), "method": str()}:
            return [document]
    raise UnreadableRequest(f"not an HTTP Archive; {_SHAPE}")


def _request(entry: Any) -> HTTPRequest:
    match entry.get("request", entry) if type(entry) is dict else None:
        case {"method": str(method), "url": str(url), **rest}:
            data = rest.get("postData")
            body = _body(data if type(data) is dict else {})
            return HTTPRequest(method=method, target=target_of(url), headers=_headers(rest.get("headers")), body=body)
    raise UnreadableRequest(f"an entry without a request; {_SHAPE}")


def _headers(listed: Any) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict()
    for item in listed if type(listed) is list else ():
        match item:
            case {"name": str(name), "value": str(value)} if not name.startswith(":"):  # HTTP/2's pseudo-header fields
                headers.add(name, value)
    return headers


def _body(data: dict[str, Any]) -> bytes:
    text = data.get("text")
    if type(text) is not str:
        return b""
    if data.get("encoding") == "base64":
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            raise UnreadableRequest("a body whose base64 doesn't decode") from None
    return text.encode(errors="surrogateescape")
