"""The times for which a request waits for its upstream's rate limit add up."""

from proxy.fetch.limit_wait import LimitWait


def test_waiting_for_a_limit_adds_up() -> None:
    wait = LimitWait()
    wait.hold(1.0)
    assert wait.is_held
    wait.release(3.0)
    wait.hold(10.0)
    wait.release(10.5)
    assert (wait.is_held, wait.held_s) == (False, 2.5)
