"""When each client last sent a request (pure)."""

from collections.abc import Mapping

from proxy.admin.samples import Samples
from proxy.telemetry import client_definitions


class LastUsed:
    """Compares samples of the counters, so that requests pay nothing for it. Exact to the samples' interval."""

    def __init__(self) -> None:
        self._requests: Mapping[str, float] = {}
        self.by_client: dict[str, float] = {}  # Unix time

    def note(self, now_s: float, samples: Samples) -> None:
        """``now_s`` is Unix time."""
        requests = samples.counters(client_definitions.CLIENT_REQUESTS, "client")
        for client, count in requests.items():
            if count > self._requests.get(client, 0.0):
                self.by_client[client] = now_s
        self._requests = requests
