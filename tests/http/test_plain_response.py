from aiohttp.web import Response

from proxy.http.plain_response import AssembledResponse, parts_of

FIELDS = {"Content-Type": "application/json", "Date": "then", "Server": "s"}


def test_parts_are_written_as_their_joined_body_would_be() -> None:
    assembled = parts_of(AssembledResponse([b"[1,", b"2", b"]"], headers=FIELDS))
    joined = parts_of(Response(body=b"[1,2]", headers=FIELDS))
    assert assembled
    assert joined
    assert b"".join(assembled) == b"".join(joined)
    assert b"Content-Length: 5\r\n" in assembled[0]


def test_parts_are_not_copied() -> None:
    part = bytes(1000)
    written = parts_of(AssembledResponse([part], headers=FIELDS))
    assert written
    assert written[1] is part


def test_a_status_that_is_no_success_is_left_to_aiohttp() -> None:
    assert parts_of(AssembledResponse([b"x"], status=404, headers=FIELDS)) is None
