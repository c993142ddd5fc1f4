"""What metrics have counted, read as a scrape reads them."""

from proxy.telemetry.metrics import Metrics


def samples(metrics: Metrics, name: str, **labels: str) -> dict[tuple[str, ...], float]:
    """The samples of a metric that are not 0 and have these ``labels``, by the values of their others."""
    return {
        tuple(value for label, value in sample.labels.items() if label not in labels): sample.value
        for family in metrics.families()
        for sample in family.samples
        if sample.name == f"embedding_proxy_{name}" and sample.value and labels.items() <= sample.labels.items()
    }
