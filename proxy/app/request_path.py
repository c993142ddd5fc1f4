"""The parts that a request passes through, from the data port's server to the core."""

import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from proxy.access.access import Access
from proxy.access.client_keys import ClientKeys
from proxy.access.pseudonyms import Pseudonyms
from proxy.access.validations import Validations
from proxy.app.core import Core
from proxy.config.settings import Settings
from proxy.dispatch import Dispatcher
from proxy.embeddings.fast_path import FastPath
from proxy.embeddings.patience import Patience
from proxy.embeddings.request_log import RequestLog
from proxy.embeddings.responses import ResponseBuilder
from proxy.embeddings.route import EmbeddingsRoute
from proxy.embeddings.unparsed import UnparsedRequests
from proxy.http.bodies import BodyReader
from proxy.periodic import every
from proxy.telemetry.access_log import FLUSH_S, AccessLog, RequestIds
from proxy.telemetry.recent_requests import RecentRequests

_KEYS_S = 1.0  # how often client keys that have ended are dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPath:
    client_keys: ClientKeys | None  # None: clients need no key of the proxy's own
    bodies: BodyReader
    log: AccessLog
    recent: RecentRequests
    dispatcher: Dispatcher
    unparsed: UnparsedRequests


async def open_request_path(
    stack: AsyncExitStack,
    settings: Settings,
    core: Core,
    *,
    write_log: Callable[[str], object] | None,
    clock: Callable[[], float],
) -> RequestPath:
    """Open the parts. Closing ``stack`` closes them."""
    client_keys = None
    if settings.client_keys is not None:
        client_keys = keys = ClientKeys(settings.client_keys, clock=clock)
        core.metrics.watch_files("client keys", lambda: keys.is_outdated)
        drop_ended = client_keys.drop_ended
        await stack.enter_async_context(every(_KEYS_S, lambda _: drop_ended()))
    access = make_access(settings, core.validations, client_keys)
    if core.canary is not None:
        core.canary.epochs.on_change = access.outdate_requests
    bodies = BodyReader(core.metrics, max_bytes=settings.max_body_bytes, max_held_bytes=settings.max_held_bytes)
    stack.callback(bodies.close)
    log = AccessLog(write_log, is_json=settings.log_format == "json", clock=clock)
    stack.callback(log.flush)
    await stack.enter_async_context(every(FLUSH_S, lambda _: log.flush()))
    recent = RecentRequests(clock)
    dispatcher, unparsed = _make_dispatcher(settings, core, access, bodies, log=RequestLog(log, recent))
    return RequestPath(
        client_keys=client_keys, bodies=bodies, log=log, recent=recent, dispatcher=dispatcher, unparsed=unparsed
    )


def make_access(settings: Settings, validations: Validations, client_keys: ClientKeys | None) -> Access:
    providers = (upstream.provider for upstream in (settings.upstream, *settings.routed))
    neutral_for_all = frozenset.intersection(*(provider.neutral_headers for provider in providers))
    return Access(
        shares_all=settings.shares_all,
        owns_key=settings.owns_key,
        client_keys=client_keys,
        validations=validations,
        key_headers=settings.key_headers,
        neutral_headers=settings.neutral_headers | neutral_for_all,
        cors_origins=settings.cors_origins,
        pseudonyms=None if settings.client_labels_key is None else Pseudonyms(settings.client_labels_key),
    )


def _make_dispatcher(
    settings: Settings, core: Core, access: Access, bodies: BodyReader, *, log: RequestLog
) -> tuple[Dispatcher, UnparsedRequests]:
    def is_draining() -> bool:
        return core.lifecycle.is_draining

    responses = ResponseBuilder(core.cache.memory, core.metrics, reports_full_usage=settings.reports_full_usage)
    fast_path = FastPath(core.cache, responses, metrics=core.metrics, access=access)
    route = EmbeddingsRoute(
        core.cache,
        core.fetcher,
        core.router,
        bodies=bodies,
        responses=responses,
        fast_path=fast_path,
        metrics=core.metrics,
        access=access,
        validations=core.validations,
        patience=Patience(settings.rate_limit_wait_s, settings.interactive_items),
        canary=core.canary,
        is_draining=is_draining,
    )
    ids, traces = RequestIds(secrets.token_hex(4)), core.traces
    dispatcher = Dispatcher(core.router, route, access, log=log, ids=ids, traces=traces, is_draining=is_draining)
    unparsed = UnparsedRequests(route, fast_path, log=log, ids=ids, traces=traces, is_draining=is_draining)
    return dispatcher, unparsed
