"""The longest wait and the sum of rates, by upstream and model, of which there are few whatever clients send."""

from proxy.telemetry.lane_gauges import LaneState
from proxy.telemetry.metrics import Metrics, text_of

HELD = "embedding_proxy_upstream_rate_limit_held_seconds"
RATE = "embedding_proxy_upstream_rate_limit_calls_per_second"


def shown(lanes: list[LaneState]) -> set[str]:
    metrics = Metrics()
    metrics.admit_model("m")
    metrics.watch_lanes(lambda: lanes)
    lines = text_of(metrics.families()).decode().splitlines()
    return {line for line in lines if line.startswith((HELD + "{", RATE + "{"))}


def test_lanes_of_several_credentials_are_one_series() -> None:
    lanes = [LaneState("openai", "m", 60.0, 10.0), LaneState("openai", "m", 3.0, 5.0)]
    labels = '{model="m",upstream="openai"}'
    assert shown(lanes) == {f"{HELD}{labels} 60.0", f"{RATE}{labels} 15.0"}


def test_a_lane_without_a_limit_has_no_series() -> None:
    assert shown([LaneState("openai", "m", 0.0, None)]) == set()


def test_models_that_no_upstream_has_served_share_one() -> None:
    lanes = [LaneState("openai", f"model {n}", float(n), None) for n in range(100)]
    assert shown(lanes) == {f'{HELD}{{model="other",upstream="openai"}} 99.0'}
