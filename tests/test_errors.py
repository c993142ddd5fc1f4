"""An error that is raised again is another object, and says the same."""

import pytest

from proxy.errors import BudgetSpent, KeyRefused, NotCached, Overloaded, ProxyError, RateLimited, UpstreamBroke

ERRORS = [
    UpstreamBroke("broke"),
    KeyRefused(),
    Overloaded("full"),
    RateLimited("slow"),
    RateLimited("slow", retry_after_s=7),
    BudgetSpent("spent", retry_after_s=3600),
    NotCached("1 of 2", items=2, missing=[1]),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_error_that_is_raised_again_says_the_same(error: ProxyError) -> None:
    with pytest.raises(type(error)) as raised:
        raise error
    again = raised.value.again()
    assert again is not error
    assert type(again) is type(error)
    assert (again.body(), again.retry_after_s, str(again)) == (error.body(), error.retry_after_s, str(error))
    assert (again.__traceback__, again.__cause__) == (None, None)


def test_how_long_to_wait_is_said_by_some_errors_and_may_be_given() -> None:
    assert [error.retry_after_s for error in ERRORS] == [None, None, 1, 1, 7, 3600, None]
