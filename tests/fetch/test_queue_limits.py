"""What of a request counts while it waits for the upstream, and what is refused."""

import pytest

from proxy.errors import Overloaded
from proxy.fetch.queue_limits import QueueLimits
from proxy.fetch.request import FetchRequest, Policy
from proxy.http.bodies import BodyReader
from proxy.telemetry.metrics import Metrics
from proxy.tenant import Tenant
from tests.support.client_requests import client_request_for


def of_tenant(name: str, items: int, *, is_unverified: bool = False) -> FetchRequest:
    texts = [f"{name} {number}" for number in range(items)]
    keys = [text.encode().ljust(32) for text in texts]
    client_request = client_request_for(texts, keys)
    bodies = BodyReader(Metrics(), max_bytes=10**6, max_held_bytes=10**6)
    client_request.reservation = bodies.reserve(Tenant(name.encode(), is_unverified=is_unverified))
    return FetchRequest(client_request, keys, Policy(0.0))


def test_items_and_bytes_count_until_they_are_given_back() -> None:
    request = of_tenant("one", 3)
    queue = QueueLimits(max_items=3, max_bytes=len(request.body))
    for _ in range(2):
        queue.take(request)
        assert queue.items == 3
        with pytest.raises(Overloaded, match="items that wait for the upstream"):
            queue.take(of_tenant("two", 1))
        queue.give_back(request)
        assert not queue.items


def test_what_has_too_many_bytes_counts_no_items() -> None:
    request = of_tenant("one", 3)
    queue = QueueLimits(max_items=100, max_bytes=len(request.body) - 1)
    with pytest.raises(Overloaded, match="bytes that wait for the upstream"):
        queue.take(request)
    assert not queue.items


def test_a_new_tenant_may_use_most_of_the_queue_and_not_all() -> None:
    queue = QueueLimits(max_items=80, max_bytes=10**6)
    queue.take(of_tenant("new", 70, is_unverified=True))
    with pytest.raises(Overloaded):
        queue.take(of_tenant("other", 1, is_unverified=True))
    queue.take(of_tenant("known", 5))
    assert queue.items == 75
