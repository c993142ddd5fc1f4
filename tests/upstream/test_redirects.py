"""Redirects of an upstream: clients get locations on this proxy, and one warning says that the base URL is wrong."""

import pytest
from multidict import CIMultiDict

from proxy.upstream.redirects import Redirects, has_location
from proxy.upstream.urls import Routes
from tests.support import proxy_log

BASE = "http://upstream/v1"
URL = f"{BASE}/embeddings"
ELSEWHERE = "https://upstream/v1/embeddings"


@pytest.fixture
def redirects() -> Redirects:
    return Redirects("one", Routes(BASE))


def fields(*named: tuple[str, str]) -> CIMultiDict[str]:
    return CIMultiDict(named)


def test_locations_lead_through_the_proxy(redirects: Redirects) -> None:
    headers = fields(
        ("location", f"{BASE}/models/x?y=1"),
        ("Content-Location", "../other"),
        ("Content-Location", "https://elsewhere/x"),
        ("X-Location", f"{BASE}/models"),
    )
    redirects.relocate(URL, headers)
    assert sorted(headers.items()) == [
        ("Content-Location", "/other"),
        ("Content-Location", "https://elsewhere/x"),
        ("Location", "/v1/models/x?y=1"),
        ("X-Location", f"{BASE}/models"),
    ]


def test_a_location_that_no_path_of_the_proxy_leads_to_is_removed() -> None:
    headers = fields(("Location", "/v1/models"), ("Content-Location", "/v1/embeddings"), ("X", "y"))
    Redirects("two", Routes(BASE, is_default=False)).relocate(URL, headers)
    assert sorted(headers.items()) == [("Content-Location", "/v1/embeddings"), ("X", "y")]


def test_a_response_without_a_location_stays(redirects: Redirects) -> None:
    headers = fields(("X", "y"))
    redirects.relocate(URL, headers)
    assert list(headers.items()) == [("X", "y")]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_of_the_embeddings_route_is_logged(
    redirects: Redirects, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    redirects.check(URL, status, fields(("Location", ELSEWHERE)))
    (warning,) = proxy_log.messages(caplog)
    hint = Routes(BASE).redirect_hint(URL, ELSEWHERE)
    assert hint
    assert warning == (
        f"upstream one redirects embeddings calls ({status}, to https://upstream/v1/embeddings);"
        f" redirects are not followed: {hint} (logged once)"
    )


def test_it_is_logged_once(redirects: Redirects, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        redirects.check(URL, 301, fields(("Location", ELSEWHERE)))
    assert len(proxy_log.messages(caplog)) == 1


@pytest.mark.parametrize("status", [200, 300, 304, 404])
def test_other_responses_are_no_redirects(redirects: Redirects, status: int, caplog: pytest.LogCaptureFixture) -> None:
    redirects.check(URL, status, fields(("Location", ELSEWHERE)))
    assert not proxy_log.messages(caplog)


def test_a_redirect_of_another_route_says_nothing_and_does_not_silence_a_later_one(
    redirects: Redirects, caplog: pytest.LogCaptureFixture
) -> None:
    redirects.check(f"{BASE}/models", 301, fields(("Location", f"{BASE}/models/")))
    assert not proxy_log.messages(caplog)
    redirects.check(URL, 301, fields(("Location", ELSEWHERE)))
    assert len(proxy_log.messages(caplog)) == 1


def test_a_secret_in_a_location_is_not_logged(redirects: Redirects, caplog: pytest.LogCaptureFixture) -> None:
    redirects.check(URL, 307, fields(("Location", f"{ELSEWHERE}?api_key=s3cret")))
    (warning,) = proxy_log.messages(caplog)
    assert "s3cret" not in warning


def test_which_responses_have_a_location() -> None:
    assert has_location(fields(("location", "/x")))
    assert has_location(fields(("Content-Location", "/x")))
    assert not has_location(fields(("X-Location", "/x")))
