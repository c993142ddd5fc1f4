"""HTTP Archives, as browsers save them."""

from typing import Any

import orjson
import pytest

from proxy.explain.har import parse_har
from proxy.explain.http_request import UnreadableRequest


def entry(url: str = "https://h/v1/embeddings", method: str = "POST", **data: str) -> dict[str, Any]:
    headers = [{"name": ":authority", "value": "h"}, {"name": "Authorization", "value": "Bearer k"}]
    return {"request": {"method": method, "url": url, "headers": headers, "postData": data}, "response": {}}


def archive(*entries: Any) -> bytes:
    return orjson.dumps({"log": {"version": "1.2", "entries": entries}})


def test_the_embeddings_requests_are_found() -> None:
    others = [entry("https://h/v1/chat/completions"), entry(method="OPTIONS"), entry("https://h/", "GET")]
    requests = parse_har(archive(*others, entry(text="a"), entry("https://h/v1/embeddings?x=1", text="b")))
    assert [(request.target, request.body) for request in requests] == [
        ("/v1/embeddings", b"a"),
        ("/v1/embeddings?x=1", b"b"),
    ]
    assert dict(requests[0].headers) == {"Authorization": "Bearer k"}


def test_one_entry_and_one_request_are_enough() -> None:
    one = entry(text="eA==", encoding="base64")
    assert [parse_har(orjson.dumps(given))[0].body for given in (one, one["request"])] == [b"x", b"x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON: "),
        (b"[]", "not an HTTP Archive; accepted: an archive"),
        (b'{"model": "m", "input": "x"}', "not an HTTP Archive"),
        (archive(), "none of the 0 requests is a POST to an embeddings route"),
        (archive(entry(method="GET")), "none of the 1 requests is a POST to an embeddings route"),
        (archive(3), "an entry without a request"),
        (archive(entry(text="*", encoding="base64")), "a body whose base64 doesn't decode"),
    ],
)
def test_what_is_no_archive(content: bytes, message: str) -> None:
    with pytest.raises(UnreadableRequest) as raised:
        parse_har(content)
    assert str(raised.value).startswith(message)
