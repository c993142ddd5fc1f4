"""Work in steps, without an event loop."""

from proxy.steps import Steps, finish


def counting(done: list[int], steps: int) -> Steps[str]:
    for number in range(steps):
        done.append(number)
        yield
    return "result"


def test_steps_can_be_finished_at_once() -> None:
    done: list[int] = []
    assert finish(counting(done, steps=3)) == "result"
    assert done == [0, 1, 2]
