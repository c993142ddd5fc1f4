"""The result of a fetch."""

from dataclasses import dataclass, replace

from msgspec import Struct

from proxy.cache.entry import Entry
from proxy.errors import Abandoned, BudgetSpent, BudgetUnknown, Overloaded, ProxyError
from proxy.fetch.outcomes import (
    Blame,
    CallFailure,
    EmbedResult,
    ErrorResponse,
    InvalidResponse,
    blame,
    is_about_credential,
    is_success,
    is_verdict,
    status_of,
    without_quotes,
)
from proxy.fetch.request import ClientRequest, FetchRequest


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a key could not be fetched, and the ``request`` whose call failed; None for what failed without a call.

    ``reader`` is the one client request whose client may read the upstream's response as it is in ``cause``: the
    request that made the call, or the one that `seen_by` is for. All others get it without quotes (`for_client`).
    """

    cause: CallFailure
    request: FetchRequest | None = None
    reader: ClientRequest | None = None

    def for_client(self, client_request: ClientRequest) -> CallFailure:
        """The cause, as the client of this request may read it."""
        return self.cause if self.reader is client_request else without_quotes(self.cause)

    @property
    def is_verdict(self) -> bool:
        """Whether the upstream refused the credential, or refused it the model."""
        if self.request is None or isinstance(self.cause, ProxyError):
            return False
        return is_verdict(self.cause, is_own_body=self.request.client_request.is_own_body(self.cause.body))

    @property
    def is_rejection(self) -> bool:
        """Whether the upstream works, and rejected the credential or what was sent."""
        return (
            not isinstance(self.cause, ProxyError)
            and blame(self.cause) is Blame.CALL
            and not is_success(status_of(self.cause.response))
        )

    @property
    def confirms(self) -> bool:
        """Whether the upstream accepted the credential all the same."""
        return isinstance(self.cause, InvalidResponse) and self.cause.confirms

    def is_for(self, waiter: FetchRequest) -> bool:
        """Whether retrying independently would give this waiter the same failure."""
        if isinstance(self.cause, Abandoned | BudgetSpent | BudgetUnknown):
            return False
        if isinstance(self.cause, Overloaded) and self.request is not None:  # by a tenant, perhaps not by all
            return self.request.client_request.tenant.name == waiter.client_request.tenant.name
        match blame(self.cause):
            case Blame.EVERYBODY:
                return not is_about_credential(self.cause) or (
                    self.request is not None
                    and self.request.client_request.credential.id == waiter.client_request.credential.id
                )
            case Blame.CALL:
                return self._is_as_if_by(waiter)
            case Blame.UNKNOWN:
                return self._is_for_items_of(waiter)

    def seen_by(self, waiter: FetchRequest) -> "Failure":
        """The failure as a waiter may see it that did not make the call."""
        cause = self.cause
        if not self._is_as_if_by(waiter):
            cause = without_quotes(cause)
        elif isinstance(cause, ErrorResponse):
            cause = replace(cause, response=cause.response.without_cookies())
        return replace(self, cause=cause, reader=waiter.client_request)

    def _is_for_items_of(self, waiter: FetchRequest) -> bool:
        """Whether the call was the same but for its items, and had no other items than the waiter."""
        request = self.request
        return (
            request is not None
            and request.client_request.group == waiter.client_request.group
            and set(request.keys).issubset(waiter.keys)
        )

    def _is_as_if_by(self, waiter: FetchRequest) -> bool:
        """Whether the call sent nothing that the waiter did not send: the upstream's response may quote all of it."""
        request = self.request
        return (
            request is not None
            and request.client_request.credential.id == waiter.client_request.credential.id
            and request.client_request.headers == waiter.client_request.headers
            and self._is_for_items_of(waiter)
        )


class FetchResult(Struct, frozen=True, kw_only=True):
    """Each key that was fetched is in ``entries`` or in ``unusable``, unless there is a ``failure``. ``unusable`` are
    responses to items that were asked for alone, with other JSON in place of the embedding."""

    entries: dict[bytes, Entry] = {}
    asked: frozenset[bytes] = frozenset()  # the keys that the upstream was asked for by this request, which it billed
    deliveries: list[EmbedResult] = []
    failure: Failure | None = None
    unusable: dict[bytes, InvalidResponse] = {}

    def after(self, first: "FetchResult") -> "FetchResult":
        """Both results as one, with the failure of the later."""
        return FetchResult(
            entries=first.entries | self.entries,
            asked=first.asked | self.asked,
            deliveries=first.deliveries + self.deliveries,
            failure=self.failure,
            unusable=first.unusable | self.unusable,
        )

    @property
    def is_by_origin(self) -> bool:
        """Whether the upstream itself answered 2xx, and not only a fallback."""
        return any(delivery.by_origin for delivery in self.deliveries) or any(
            response.confirms for response in self.unusable.values()
        )

    @property
    def settled(self) -> set[bytes]:
        """The keys that need no further call."""
        return self.entries.keys() | self.unusable.keys()

    @property
    def is_billed(self) -> bool:
        """Whether the upstream responded to a call that was made for this request."""
        return bool(self.deliveries or self.unusable)

    @property
    def bill(self) -> "FetchResult":
        """What the upstream billed, without entries."""
        return FetchResult(deliveries=self.deliveries)


NOTHING = FetchResult()

FlightResult = Entry | Failure  # of one key
