"""Embeddings requests that are relayed without caching."""

from collections.abc import Callable

from aiohttp.web import BaseRequest, StreamResponse
from multidict import CIMultiDict

from proxy.access.validations import CREDENTIAL_REFUSALS, Credential, CredentialScope, Validations
from proxy.embeddings.cache_headers import add_cache_headers
from proxy.embeddings.log_once import LogOnce, reason_of
from proxy.embeddings.progress import Progress
from proxy.embeddings.reader import BypassedRequest
from proxy.errors import NotCached
from proxy.fetch.outcomes import is_success, status_of
from proxy.fetch.spending import Spending
from proxy.labels import ItemResult
from proxy.passthrough.relay import relay
from proxy.protocol import headers
from proxy.protocol.cors import origin_of
from proxy.protocol.directives import cache_control
from proxy.telemetry.metrics import Metrics
from proxy.upstream.client import UpstreamResponse


class BypassRelay:
    def __init__(
        self,
        metrics: Metrics,
        validations: Validations,
        log_once: LogOnce,
        spending: Spending,
        *,
        is_draining: Callable[[], bool],
    ) -> None:
        self._metrics = metrics
        self._validations = validations
        self._log_once = log_once
        self._spending = spending
        self._is_draining = is_draining

    async def relay(
        self, request: BaseRequest, progress: Progress, body: bytes, bypassed: BypassedRequest
    ) -> StreamResponse:
        """Relay a request as it came, and its response. Raises `ProxyError`."""
        origin, reason = bypassed.origin, bypassed.bypass.reason
        if cache_control(request.headers).only_if_cached:
            raise NotCached(f"The request can't be cached ({reason}).")
        await self._spending.require(progress.client, bypassed.model)
        self._log_once.warn(reason_of(bypassed.bypass), f"requests to {origin.name} are relayed without caching")
        target = origin.target(request.raw_path)
        route = origin.routes.find(target)
        url = route.url if route else origin.routes.embeddings(target)

        def on_head(status: int, fields: CIMultiDict[str]) -> None:
            add_cache_headers(fields, "BYPASS", f"fwd=bypass; detail={reason}", saved_tokens=0)
            origin.cors.relayed(origin_of(request.headers), status, fields)

        with (
            progress.span.calls(model=lambda: self._metrics.label_of(progress.model)) as calls,
            calls.call("POST", url, upstream=origin.name, provider=origin.provider.name, items=progress.items) as call,
        ):
            forwarded = origin.outbound(headers.to_upstream(request.headers))
            if origin.key:
                forwarded["Accept-Encoding"] = "identity"  # the beginning of the response is read
            response = await relay(
                request,
                origin.client,
                url,
                call.outbound(forwarded),
                request_id=progress.request_id,
                body=body,
                is_draining=self._is_draining,
                owns_key=bool(origin.key),
                on_head=on_head,
                refuses_key=_refuses_key,
            )
            call.responded(response.status)
        self._metrics.bypasses.labels(reason.value).inc()
        self._metrics.of_model(progress.model).items[ItemResult.BYPASS].inc(progress.items)
        if is_success(response.status):
            self._metrics.ledger.admit(progress.client)
        row = self._metrics.row(progress.client, progress.model)
        row.count_bypass(reason)
        row.count_items(ItemResult.BYPASS, progress.items)
        if response.status in CREDENTIAL_REFUSALS:
            self._validations.note(Credential(bypassed.credential_id, CredentialScope(url, None)), response.status)
        elif is_success(response.status):
            self._validations.accept(bypassed.credential_id.tenant)
        return response


def _refuses_key(response: UpstreamResponse) -> bool:
    return status_of(response) in CREDENTIAL_REFUSALS
