"""What a miss pays for the pacer while no rate limit is known: the CPU time of its steps alone.

python -m bench.limits_cost
"""

import asyncio
import time
from typing import Any

from multidict import CIMultiDict, CIMultiDictProxy

from proxy.fetch.client_wait import ClientWait
from proxy.fetch.held import HeldRequests
from proxy.fetch.lane import Lanes
from proxy.fetch.outcomes import EmbedResult
from proxy.fetch.request import FetchRequest, Policy
from proxy.fetch.singleflight import Flights
from proxy.fetch.waiting import Waiting
from proxy.pacing.pacer import Pacer
from proxy.protocol.provider import Limits
from proxy.protocol.vectors import DType, Vector
from proxy.telemetry.metrics import Metrics
from proxy.upstream.router import Origin
from tests.support.client_requests import client_request_for

_CALLS, _ROUNDS = 1_000, 100
_LIMITS = Limits(2048, 300_000, 10**7)
# As many fields as a response of OpenAI has, none of them about limits.
_HEADERS = {f"x-field-{n}": "value" for n in range(12)} | {"Content-Type": "application/json"}


def measured_us() -> float:
    """Microseconds a miss, the least of many short rounds: other processes slow some of them down."""
    with_pacer, without = zip(*(asyncio.run(_round_us()) for _ in range(_ROUNDS)), strict=True)
    return float(min(with_pacer) - min(without))


async def _round_us() -> tuple[float, float]:
    """With a pacer, and without."""
    nothing: Any = None
    held = HeldRequests(
        Lanes(lambda _upstream, _model: Pacer()),
        Metrics(),
        start=nothing,
        room_for=nothing,
        is_too_large=nothing,
    )
    client_request = client_request_for(["a text"], [b"k" * 32])
    client_request.origin = _origin()
    request = FetchRequest(client_request, [b"k" * 32], Policy(0.0))
    outcome = _outcome()
    _ = request.tokens  # which a miss without a pacer needs, too
    began_s = time.process_time()
    for _ in range(_CALLS):
        await _miss(held, request, outcome)
    with_pacer_s = time.process_time() - began_s
    began_s = time.process_time()
    for _ in range(_CALLS):
        await _miss_without(request, outcome)
    return with_pacer_s / _CALLS * 1e6, (time.process_time() - began_s) / _CALLS * 1e6


async def _miss(held: HeldRequests, request: FetchRequest, outcome: EmbedResult) -> None:
    claim, waiting = _claimed(request)
    lane = held.lane(request.client_request)
    assert lane is not None
    lane.limits(_LIMITS)
    lane.limits(_LIMITS, is_merged=True)
    assert lane.takes([waiting])
    call = lane.sent([waiting])
    held.ended([waiting], call, [outcome])
    claim.settle_rest(None)
    assert await held.wait(waiting.wait) is None


async def _miss_without(request: FetchRequest, outcome: EmbedResult) -> None:
    claim, waiting = _claimed(request)
    waiting.resolve(outcome)
    claim.settle_rest(None)
    await claim.wait()


def _claimed(request: FetchRequest) -> tuple[Any, Waiting]:
    claim = Flights[Any]().claim(request.keys)
    wait = ClientWait(request.client_request, claim)
    return claim, Waiting(request, wait, asyncio.get_running_loop().create_future(), 0.0)


def _origin() -> Origin:
    origin: Any = _OneCandidate()
    return origin  # type: ignore[no-any-return]


class _OneCandidate:
    name, key, candidates = "o", None, (None,)


def _outcome() -> EmbedResult:
    return EmbedResult(
        vectors=[Vector(DType.FLOAT32, b"\0\0\x80?")],
        tokens=[1],
        model="m",
        usage={},
        extra_fields={},
        status=200,
        headers=CIMultiDictProxy(CIMultiDict(_HEADERS)),
        relayed=CIMultiDict(_HEADERS),
        is_unmerged=True,
        is_own_body=True,
        by_origin=True,
    )


if __name__ == "__main__":
    print(f"{measured_us():.2f} µs of CPU a miss, under no limit")
