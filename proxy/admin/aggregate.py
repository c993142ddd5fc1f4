"""The workers of one proxy, as one: their metrics, added up.

Each worker answers on a Unix socket of its own, whose name ends in `SUFFIX`, in a folder that nobody else can enter.
"""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_log = logging.getLogger(__name__)

SUFFIX = ".sock"
_PATIENCE = ClientTimeout(total=2.0)
# These say what is so and not how much of it there is.
_GREATEST = frozenset({"embedding_proxy_breaker_state", "embedding_proxy_build_info"})


class Workers:
    """What a worker has counted outlives it: a sum that fell would look like a restart of all of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: dict[Path, list[Metric]] = {}  # of each that answered, alive or not
        self._past: list[Metric] = []  # the counters of those that are gone
        # One at a time, or a worker that dies meanwhile would be counted among the living and among the dead.
        self._asking = asyncio.Lock()

    async def families(self) -> Iterable[Metric]:
        """The sum over all workers, dead ones included where something was counted."""
        async with self._asking:
            asked = sorted(self._folder.glob("*" + SUFFIX))
            answers = await asyncio.gather(*map(_ask, asked))
            for path, answer in zip(asked, answers, strict=True):
                if answer is not None:
                    self._last[path] = answer
            for path in [path for path in self._last if path not in asked]:
                self._past = add_up([self._past, _counters(self._last.pop(path))])
            return add_up([self._past, *self._last.values()])


async def _ask(path: Path) -> list[Metric] | None:
    try:
        async with (
            ClientSession(connector=UnixConnector(str(path)), timeout=_PATIENCE) as session,
            session.get("http://worker/metrics") as response,
        ):
            return list(text_string_to_metric_families(await response.text()))
    except (ClientError, OSError, TimeoutError) as error:
        _log.warning("a worker did not say what it has counted: %s", type(error).__name__)
        return None


def _counters(families: Iterable[Metric]) -> list[Metric]:
    return [family for family in families if family.type in {"counter", "histogram"}]


def add_up(sources: Iterable[Iterable[Metric]]) -> list[Metric]:
    """One family for each name, and in it one sample for each set of labels."""
    families: dict[str, Metric] = {}
    samples: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], Sample]] = {}
    for source in sources:
        for family in source:
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            found = samples.setdefault(family.name, {})
            for sample in family.samples:
                series = sample.name, frozenset(sample.labels.items())
                value = sample.value
                if series in found:
                    other = found[series].value
                    value = max(value, other) if family.name in _GREATEST else value + other
                found[series] = sample._replace(value=value)
    for name, family in families.items():
        family.samples = list(samples[name].values())
    return list(families.values())
