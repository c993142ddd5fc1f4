"""A call in flight, as a pacer sees it (pure)."""

from msgspec import Struct

from proxy.pacing.quotas import Cost


class SentCall(Struct, eq=False, gc=False):
    """It was the ``in_flight``-th one when it was sent."""

    cost: Cost
    at_s: float
    in_flight: int
    is_against_stated: bool = False  # it was sent although responses stated that nothing is left
