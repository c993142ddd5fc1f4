"""What one request fetches, and how."""

from typing import NamedTuple

from proxy.cache.cache import Cache
from proxy.embeddings.lookup import Lookup
from proxy.fetch.request import ClientRequest, Policy
from proxy.fetch.result import NOTHING, FetchResult


class FetchPlan(NamedTuple):
    """What to fetch: the missing items of ``found``, except those fetched ``first`` to validate the credential."""

    found: Lookup
    policy: Policy
    first: FetchResult = NOTHING


def policy_of(client_request: ClientRequest, cache: Cache) -> Policy:
    """How the client's directives and its model let its items be fetched."""
    directives = client_request.directives
    is_fused = client_request.origin.provider.is_fused_model(client_request.parsed.model)
    return Policy(
        min_stored_at_s=cache.freshness_cutoff_s(directives.max_age_s),
        may_join=not (directives.no_cache or directives.no_store),
        is_stored=not directives.no_store,
        overwrite=directives.no_cache or directives.max_age_s is not None,
        may_merge=not (client_request.spec.is_keyed_whole or is_fused),
    )
