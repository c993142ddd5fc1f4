"""One leader for each key, a result for every waiter, nothing left behind, in any order of events."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from proxy.fetch.singleflight import Claim, Flights

A, B, C = b"a", b"b", b"c"


async def test_the_first_to_claim_leads_and_the_others_wait() -> None:
    flights: Flights[int] = Flights()
    first, second = flights.claim([A, B]), flights.claim([B, C])
    assert (list(first.mine), list(second.mine)) == ([A, B], [C])
    assert first.flights[B] is second.flights[B]
    first.settle({A: 0})
    first.settle({B: 1})
    second.settle({C: 2})
    assert [second.flights[key].result() for key in (B, C)] == [1, 2]
    assert repr(flights) == "<Flights 0 under way>"


async def test_settling_twice_does_not_end_a_later_flight() -> None:
    """A waiter that chose to retry claims the key again while its first leader is still cleaning up."""
    flights: Flights[str] = Flights()
    first = flights.claim([A])
    first.settle({A: "failed"})
    second = flights.claim([A])
    first.settle({A: "abandoned"})
    assert first.flights[A].result() == "failed"
    assert not second.flights[A].done()
    second.settle({A: "fetched"})
    assert second.flights[A].result() == "fetched"


async def test_a_flight_that_anothers_result_has_ended_is_not_joined_and_not_kept() -> None:
    """As that of a key which its leader's rate limit holds, while the last attempt of another request fetches it."""
    flights: Flights[int] = Flights()
    held = flights.claim([A, B])
    for flight in held.flights.values():
        flight.set_result(1)
    later = flights.claim([A])
    assert list(later.mine) == [A]
    held.settle({A: 2})
    held.settle_rest(2)
    assert [flight.result() for flight in held.flights.values()] == [1, 1]
    assert not later.flights[A].done()
    later.settle({A: 3})
    assert not len(flights)


async def test_a_waiter_that_leaves_cancels_nothing() -> None:
    flights: Flights[int] = Flights()
    claim = flights.claim([A])
    leaving = asyncio.create_task(asyncio.wait(claim.flights.values()))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    claim.settle({A: 1})
    assert claim.flights[A].result() == 1


@given(st.lists(st.tuples(st.sampled_from(["claim", "settle"]), st.sets(st.sampled_from([A, B, C])))))
def test_there_is_one_leader_at_a_time_and_every_claim_gets_a_result(steps: list[tuple[str, set[bytes]]]) -> None:
    async def run() -> None:
        flights: Flights[int] = Flights()
        led: dict[bytes, tuple[int, Claim[int]]] = {}
        promised: list[tuple[int, asyncio.Future[int]]] = []
        for number, (step, keys) in enumerate(steps):
            if step == "claim":
                claim = flights.claim(keys)
                assert not set(claim.mine) & set(led)
                led |= dict.fromkeys(claim.mine, (number, claim))
                promised += [(led[key][0], flight) for key, flight in claim.flights.items()]
            else:
                for key in keys & set(led):
                    leader, claim = led.pop(key)
                    claim.settle({key: leader})
        for key, (leader, claim) in led.items():
            claim.settle({key: leader})
        assert all(flight.result() == leader for leader, flight in promised)
        assert not len(flights)

    asyncio.run(run())


async def test_claims_are_atomic_among_tasks() -> None:
    flights: Flights[str] = Flights()
    leaders: list[str] = []

    async def want(name: str) -> str:
        claim = flights.claim([A])
        if claim.mine:
            leaders.append(name)
            await asyncio.sleep(0)
            claim.settle({A: name})
        await asyncio.wait(claim.flights.values())
        return claim.flights[A].result()

    results = await asyncio.gather(*(want(str(number)) for number in range(50)))
    assert leaders == ["0"]
    assert set(results) == {"0"}
