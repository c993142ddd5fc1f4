"""The metrics of all workers of one proxy, added up, and their last requests.

Each worker serves its metrics on a Unix socket, whose name ends in `SUFFIX`, in a directory that only this user can
enter.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from proxy.admin.recent import parse_recent
from proxy.telemetry import client_definitions, definitions
from proxy.telemetry.process_definitions import RELOAD_FAILED, WORKERS_CONFIGURED, WORKERS_ENDED, WORKERS_RUNNING
from proxy.telemetry.recent_request import RecentRequest

_log = logging.getLogger(__name__)

SUFFIX = ".sock"
_TIMEOUT = ClientTimeout(total=2.0)
# Gauges of a state, not of an amount: the greatest value counts, not the sum.
_GREATEST = frozenset(
    definition.name
    for definition in (
        definitions.BREAKER_STATE,
        client_definitions.BUDGET_LIMIT,  # with a store, each worker knows what all have spent
        client_definitions.BUDGET_SPENT,
        definitions.BUILD_INFO,
        definitions.STORE_CHANGES_AGE,
        definitions.RATE_LIMIT_HELD_SECONDS,
        definitions.CANARY_VERDICT,
        definitions.CANARY_DISTANCE,
        definitions.CANARY_NOISE,
        definitions.CANARY_CHANGED,
        definitions.CANARY_EPOCH,
        definitions.CANARY_FAILURES,
        definitions.CANARY_MEASURED_AT,
        RELOAD_FAILED,
    )
)
# Each worker knows only of itself.
_OF_WORKERS = frozenset(definition.name for definition in (WORKERS_RUNNING, WORKERS_CONFIGURED, WORKERS_ENDED))


class Workers:
    """Keeps the counters of workers that have ended: if a sum fell, it would look like a restart of all workers."""

    def __init__(self, folder: Path, *, configured: int = 1, ended: Callable[[], int] = int) -> None:
        """``folder`` has the sockets of the workers, of which there are ``configured``, if all of them run; ``ended``
        says how many have ended."""
        self._folder = folder
        self._configured = configured
        self._ended = ended
        self._last: dict[Path, list[Metric]] = {}  # the last metrics of each worker
        self._past: list[Metric] = []  # the counters of workers that have ended
        # One scrape at a time, or a worker that ends during a scrape could be counted twice.
        self._scraping = asyncio.Lock()

    async def families(self) -> Iterable[Metric]:
        """The sum over all workers. Counters and histograms include workers that have ended."""
        async with self._scraping:
            paths = sorted(self._folder.glob("*" + SUFFIX))
            found = {
                path: families
                for path, families in zip(paths, await asyncio.gather(*map(_scrape, paths)), strict=True)
                if families is not None
            }
            self._last.update(found)
            for path in [path for path in self._last if path not in paths]:
                self._past = add_up([self._past, _counters(self._last.pop(path))])
            sums = add_up([self._past, *self._last.values()])
            return [*(family for family in sums if family.name not in _OF_WORKERS), *self._of_workers(len(found))]

    def _of_workers(self, running: int) -> Iterable[Metric]:
        yield GaugeMetricFamily(*WORKERS_RUNNING[:2], value=running)
        yield GaugeMetricFamily(*WORKERS_CONFIGURED[:2], value=self._configured)
        yield CounterMetricFamily(*WORKERS_ENDED[:2], value=self._ended())

    @property
    def are_there(self) -> bool:
        """Whether any has started, and has not ended."""
        return any(self._folder.glob("*" + SUFFIX))

    async def recent_requests(self, count: int) -> list[RecentRequest]:
        """The last requests of all workers that run, in the order in which they ended."""
        paths = sorted(self._folder.glob("*" + SUFFIX))
        bodies = await asyncio.gather(*(_get(path, f"requests.json?last={count}") for path in paths))
        found = [request for body in bodies if body is not None for request in parse_recent(body)]
        return sorted(found, key=attrgetter("ended_at_s"))[-count:]


async def _scrape(path: Path) -> list[Metric] | None:
    body = await _get(path, "metrics")
    return None if body is None else list(text_string_to_metric_families(body.decode()))


async def _get(path: Path, name: str) -> bytes | None:
    """What a worker's own admin port has under ``name``; None if it does not respond."""
    try:
        async with (
            ClientSession(connector=UnixConnector(str(path)), timeout=_TIMEOUT) as session,
            session.get(f"http://localhost/{name}") as response,
        ):
            response.raise_for_status()
            return await response.read()
    except (ClientError, OSError, TimeoutError) as error:
        what = name.partition(".")[0]
        _log.warning("can't read the %s of the worker with process ID %s: %s", what, path.stem, type(error).__name__)
        return None


def _counters(families: Iterable[Metric]) -> list[Metric]:
    return [family for family in families if family.type in {"counter", "histogram"}]


def add_up(sources: Iterable[Iterable[Metric]]) -> list[Metric]:
    """One family per name, with one sample per set of labels."""
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
