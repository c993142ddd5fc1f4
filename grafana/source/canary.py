"""Whether the upstreams' models still compute the vectors that they once did: a row of the upstream dashboard."""

from grafana.source.panels import GREEN, RED, YELLOW, Panel
from grafana.source.promql import Queries, series

_LEGEND = "{{upstream}} {{model}}"


def _latest(name: str, *labels: str) -> str:
    """A gauge, which every instance has alike."""
    return f"max by (upstream, model) ({series(name, *labels, by_model=True)})"


def _by_model(name: str) -> Queries:
    return {_LEGEND: _latest(name)}


def _a_day(by: str, name: str) -> str:
    """A check is too rare for a rate."""
    return f"sum by ({by}) (increase({series(name, by_model=True)}[1d]))"


CANARY = [
    Panel(
        "Verdict of the latest check",
        "Of each model that --canary checks: same-bits, within-noise and last-bits are harmless; drifted, other-model"
        " and dimensions mean that the upstream no longer serves the model that it did; failed, no vectors. See"
        " docs/drift.md.",
        {"verdict": f"max by (upstream, model, verdict) ({series('canary_verdict', by_model=True)}) == 1"},
        "none",
        kind="table",
        width=12,
    ),
    Panel(
        "Distance to the first vectors",
        "The largest cosine distance (1 - cosine) of a text's vector to its first one, and the upstream's own noise, on"
        " a logarithmic scale, on which 0 is not drawn. Above 0.0001 and above twice the noise it is drift.",
        {_LEGEND: _latest("canary_distance"), f"{_LEGEND} noise": _latest("canary_noise")},
        "sci",
        width=12,
        minimum=None,
        is_logarithmic=True,
    ),
    Panel(
        "Numbers changed",
        "Of the numbers of all texts' vectors, those that differ in any bit from the first ones.",
        _by_model("canary_changed_ratio"),
        "percentunit",
        maximum=1,
    ),
    Panel(
        "Checks a day by verdict",
        "Of all instances. With --canary 6h there are four a day and model; a failed one is repeated after 15 minutes.",
        {"{{verdict}}": _a_day("verdict", "canary_checks_total")},
        "short",
        is_stacked=True,
    ),
    Panel(
        "Failed checks in a row",
        "The log says why. The alert EmbeddingProxyCanaryFails looks at this.",
        _by_model("canary_failures"),
        "short",
        steps=[(None, GREEN), (1, YELLOW), (3, RED)],
    ),
    Panel(
        "Time since the latest vectors",
        "Since the latest check that got vectors. More than the interval of --canary: checks fail, or nobody asks for"
        " the model.",
        {_LEGEND: f"time() - {_latest('canary_measured_timestamp_seconds')}"},
        "s",
    ),
    Panel(
        "Epoch",
        "Which generation of the key a model's entries have. It grows by 1 when its weights have changed, with"
        " --on-drift new-epoch.",
        _by_model("canary_epoch"),
        "none",
    ),
    Panel(
        "Tokens of checks a day",
        "As the upstreams billed them. They are not part of any other count of tokens.",
        {_LEGEND: _a_day("upstream, model", "canary_tokens_total")},
        "short",
    ),
]
