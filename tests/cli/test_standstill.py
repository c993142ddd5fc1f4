"""What a long command says while it waits."""

from proxy.cli.standstill import Standstill

BEGAN_S = 1_700_000_000.0  # 22:13:20 UTC


def test_a_known_reason_is_shown_at_once_with_the_time_of_the_last_progress() -> None:
    standstill = Standstill(0.0)
    standstill.end(BEGAN_S)
    assert standstill.text(BEGAN_S + 5) is None
    standstill.because_of("429 Rate limit reached.")
    assert standstill.text(BEGAN_S + 5) == "waiting since 22:13:20 UTC (5 s): 429 Rate limit reached."
    standstill.because_of("502 The upstream is gone.")
    assert standstill.text(BEGAN_S + 3600) == "waiting since 22:13:20 UTC (3600 s): 502 The upstream is gone."
    standstill.end(BEGAN_S + 3601)
    assert standstill.text(BEGAN_S + 3602) is None


def test_a_request_without_a_response_is_named_after_ten_seconds() -> None:
    standstill = Standstill(BEGAN_S)
    assert standstill.text(BEGAN_S + 9) is None
    said = standstill.text(BEGAN_S + 10)
    assert said == (
        "waiting since 22:13:20 UTC (10 s): no response yet; the proxy may be waiting for the upstream's rate limit"
    )


def test_lines_come_after_ten_seconds_and_then_once_a_minute() -> None:
    standstill = Standstill(BEGAN_S)
    standstill.because_of("429 no")
    reported = [second for second in range(200) if standstill.report(BEGAN_S + second) is not None]
    assert reported == [10, 70, 130, 190]
    standstill.end(BEGAN_S + 200)
    assert [second for second in range(200, 230) if standstill.report(BEGAN_S + second) is not None] == [210]


def test_progress_is_not_reported() -> None:
    standstill = Standstill(BEGAN_S)
    for second in range(0, 100, 5):
        standstill.end(BEGAN_S + second)
        assert standstill.report(BEGAN_S + second + 4) is None
