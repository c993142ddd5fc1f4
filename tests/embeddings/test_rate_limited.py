"""Requests that come and leave under rate limits of every kind: the real path from the parsed body to the response, on
a virtual clock. Nothing is computed twice, and nothing is lost."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.support.limited_route import WAIT_S, Answer, LimitedRoute
from tests.support.limiters import LIMITERS
from tests.support.profiles import IS_SLOW_PROFILE
from tests.support.virtual_loop import VirtualLoop

STEPS, EXAMPLES = 50, 2500 if IS_SLOW_PROFILE else 12
# A client that waits as long as all of a machine's requests take under the strictest limiter gets its vectors.
LONG_S = 45.0


@dataclass
class Sent:
    task: "asyncio.Task[Answer]"
    wait_s: float


class Crowd(RuleBasedStateMachine):
    """A step is that a request comes, or leaves, or that time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.sent: list[Sent] = []
        self.numbers = iter(range(10**9))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @initialize(name=st.sampled_from(sorted(LIMITERS)))
    def begins(self, name: str) -> None:
        async def make() -> LimitedRoute:
            return LimitedRoute(LIMITERS[name]())

        self.route: LimitedRoute = self.run(make())

    @rule(
        size=st.sampled_from([1, 1, 2, 10, 40]),
        old=st.none() | st.integers(0, 60),
        key=st.sampled_from("ab"),
        urgency=st.none() | st.integers(0, 7),
        wait_s=st.none() | st.integers(0, 50),
        dimensions=st.sampled_from([None, None, None, 7]),
        pause_s=st.sampled_from([0.0, 0.0, 0.02, 0.2]),
    )
    def comes(
        self,
        size: int,
        old: int | None,
        key: str,
        urgency: int | None,
        wait_s: int | None,
        dimensions: int | None,
        pause_s: float,
    ) -> None:
        number = next(self.numbers)
        texts = [f"{number} {n}" for n in range(size)]
        if old is not None:
            texts.append(f"{min(old, number)} 0")  # which another request has, too
        fields = {} if urgency is None else {"Priority": f"u={urgency}"}
        if wait_s is not None:
            fields["Prefer"] = f"wait={wait_s}"
        more = {} if dimensions is None else {"user": "a group of its own"}

        async def send() -> None:
            task = self.route.start(list(dict.fromkeys(texts)), key, fields=fields, **more)
            self.sent.append(Sent(task, WAIT_S if wait_s is None else wait_s))
            await asyncio.sleep(pause_s)

        self.run(send())

    @rule(which=st.integers(0, 1000))
    def leaves(self, which: int) -> None:
        if self.sent:
            self.sent.pop(which % len(self.sent)).task.cancel()
            self.run(asyncio.sleep(0))

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @invariant()
    def nothing_is_computed_twice(self) -> None:
        if hasattr(self, "route"):
            assert max(self.route.upstream.computed.values(), default=0) <= 1

    def teardown(self) -> None:
        async def end() -> None:
            for one in self.sent:
                answer = await one.task
                assert answer.took_s <= one.wait_s + 2.0
                assert answer.status == 200 or (answer.status == 429 and one.wait_s < LONG_S)
            await asyncio.sleep(WAIT_S)
            await self.route.assert_idle()

        if hasattr(self, "route"):
            self.run(end())
            self.nothing_is_computed_twice()
        self.loop.close()


@pytest.mark.timeout(3600)
def test_nothing_is_computed_twice_and_nothing_is_lost() -> None:
    run_state_machine_as_test(Crowd, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None))
