"""Which requests may be recognized when they come again."""

from typing import Any

import pytest
from aiohttp import HttpVersion10, HttpVersion11

from proxy.embeddings.sighting import ID_NAMES, IDS, PERSONAL, is_plain, is_repeatable
from proxy.protocol.identities import Identity, identity
from tests.support.fake_request import FakeRequest


def request_with(fields: dict[str, str], **attributes: Any) -> Any:
    request = FakeRequest(["a"], fields)
    request.__dict__.update({"version": HttpVersion11, "keep_alive": True} | attributes)
    return request


def own(request: Any) -> Identity:
    return identity(request.headers)


def test_a_plain_request_has_nothing_but_identity_and_body() -> None:
    request = request_with({"Authorization": "Bearer k", "X-Route": "eu", "Accept": "*/*"})
    assert is_plain(request, own(request))


@pytest.mark.parametrize(
    "fields",
    [
        {"Content-Type": "application/json; charset=utf-8"},
        {"Content-Type": "text/plain"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": ""},
        {"Cache-Control": "max-age=0"},
    ],
)
def test_a_field_that_changes_how_the_request_is_handled_makes_it_not_plain(fields: dict[str, str]) -> None:
    request = request_with(fields)
    assert not is_plain(request, own(request))


def test_a_signed_request_is_not_plain() -> None:
    request = request_with({})
    assert not is_plain(request, own(request)._replace(is_signed=True))


@pytest.mark.parametrize("name", PERSONAL)
def test_a_request_with_a_personal_field_gets_a_response_of_its_own(name: str) -> None:
    assert not is_repeatable(request_with({name.lower(): ""}), PERSONAL)
    assert is_repeatable(request_with({name.lower(): ""}), ())


def test_only_a_kept_connection_of_http_1_1_has_repeats() -> None:
    assert is_repeatable(request_with({"Accept": "*/*"}), PERSONAL + IDS)
    assert not is_repeatable(request_with({}, version=HttpVersion10), PERSONAL)
    assert not is_repeatable(request_with({}, keep_alive=False), PERSONAL)
    assert not is_repeatable(request_with({}, keep_alive=None), PERSONAL)


def test_names_of_ids_are_compared_in_lower_case() -> None:
    assert {"x-request-id", "traceparent", "tracestate"} == ID_NAMES
