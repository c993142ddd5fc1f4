"""Which names get series of their own."""

from proxy.labels import ItemResult
from proxy.telemetry.metrics import Metrics


def test_items_of_a_model_without_a_label_are_not_those_of_other_models() -> None:
    metrics = Metrics()
    metrics.admit_model("known")
    metrics.of_model("known").items[ItemResult.UPSTREAM].inc(3)
    metrics.of_model("unknown").items[ItemResult.UPSTREAM].inc(5)
    assert metrics.items_of_model("known") == 3
    assert metrics.items_of_model("unknown") == metrics.items_of_model("another") == metrics.items_of_model(None) == 0
