"""How a request was understood, as operators see it: names, never values, and bounded."""

from proxy.access.validations import CredentialId
from proxy.embeddings.reader import BypassedRequest
from proxy.embeddings.request_detail import detail_of
from proxy.labels import BypassReason
from proxy.protocol.bypass import Bypass
from tests.support.client_requests import client_request_for
from tests.support.fake_client import FakeClient, origin_of

ORIGIN = origin_of(FakeClient(), "east")
KEY = b"k" * 32


def test_a_request_that_is_keyed_item_by_item() -> None:
    headers = {"Authorization": "Bearer secret", "X-Api-Key": "secret", "X-Route": "secret"}
    detail = detail_of(client_request_for(["a"], [KEY], origin=ORIGIN, headers=headers))
    assert (detail.upstream, detail.provider, detail.keyed) == ("east", "generic", "items")
    assert (detail.reason, detail.field) == (None, None)
    assert detail.credential_headers == ("authorization", "x-api-key")
    assert detail.vector_headers == ("x-route",)
    assert detail.cache_control == ""
    assert "secret" not in repr(detail)


def test_a_request_that_is_keyed_by_its_body() -> None:
    detail = detail_of(client_request_for(["a"], [KEY], origin=ORIGIN, my_tag="x"))
    assert (detail.keyed, detail.reason, detail.field) == ("body", "unknown-field", "my_tag")


def test_a_request_that_was_not_read() -> None:
    bypassed = BypassedRequest(Bypass(BypassReason.NOT_JSON), ORIGIN, CredentialId(b"t", b"c"), None, 1)
    detail = detail_of(bypassed)
    assert (detail.upstream, detail.keyed, detail.reason, detail.field) == ("east", "nothing", "not-json", None)
    assert (detail.credential_headers, detail.vector_headers, detail.cache_control) == ((), (), "")


def test_a_field_that_may_be_a_clients_text_is_not_named() -> None:
    bypassed = BypassedRequest(Bypass(BypassReason.STREAM, "not a name"), ORIGIN, CredentialId(b"t", b"c"), None, 1)
    assert detail_of(bypassed).field is None


def test_names_of_header_fields_are_bounded() -> None:
    headers = {f"X-Route-{'y' * 70}-{n:02}": "v" for n in range(20)}
    names = detail_of(client_request_for(["a"], [KEY], origin=ORIGIN, headers=headers)).vector_headers
    assert names == ("x-route-" + "y" * 56,) * 16


def test_directives_are_written_as_in_the_request() -> None:
    def written(value: str) -> str:
        request = client_request_for(["a"], [KEY], origin=ORIGIN, headers={"Cache-Control": value})
        return detail_of(request).cache_control

    assert written("no-store") == "no-store"
    assert written("max-age=0") == "max-age=0"
    assert written("only-if-cached, no-cache, max-age=60") == "no-cache, only-if-cached, max-age=60"
    assert written("private") == ""
