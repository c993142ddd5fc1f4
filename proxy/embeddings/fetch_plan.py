"""What one request fetches."""

from typing import NamedTuple

from proxy.embeddings.lookup import Lookup
from proxy.fetch.request import Policy
from proxy.fetch.result import NOTHING, FetchResult


class FetchPlan(NamedTuple):
    """What to fetch: the missing items of ``found``, except those fetched ``first`` to validate the credential."""

    found: Lookup
    policy: Policy
    first: FetchResult = NOTHING
