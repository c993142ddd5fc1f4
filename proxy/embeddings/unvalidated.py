"""Requests whose credential the upstream has not validated recently: it is asked before stored items are served."""

from msgspec.structs import replace

from proxy.access.access import Access
from proxy.access.validations import Validations
from proxy.cache.cache import Cache
from proxy.embeddings.failures import FailureResponses, Resolved
from proxy.embeddings.fetch_plan import FetchPlan, policy_of
from proxy.embeddings.lookup import Lookup, count_model_versions, count_models
from proxy.embeddings.responses import ResponseBuilder
from proxy.embeddings.revalidation import Revalidator
from proxy.errors import CredentialRefused
from proxy.fetch.outcomes import Blame, blame
from proxy.fetch.request import ClientRequest, FetchRequest
from proxy.fetch.result import NOTHING, Failure
from proxy.labels import RequestOutcome
from proxy.protocol import tokens

# How long requests for stored items wait for the upstream's verdict on their credential.
_PROBE_TIMEOUT_S = 2.0


class UnvalidatedRequests:
    def __init__(
        self,
        cache: Cache,
        responses: ResponseBuilder,
        failures: FailureResponses,
        revalidator: Revalidator,
        *,
        access: Access,
        validations: Validations,
    ) -> None:
        self._cache = cache
        self._responses = responses
        self._failures = failures
        self._revalidator = revalidator
        self._access = access
        self._validations = validations

    def is_valid(self, client_request: ClientRequest) -> bool:
        """Whether stored items may be served without asking the upstream."""
        may_serve = self._access.may_serve(client_request.credential)
        return may_serve and self._access.may_read(client_request.origin, client_request.received)

    def must_validate(self, client_request: ClientRequest, found: Lookup) -> bool:
        """Whether to validate a credential before the missing items are fetched, which would validate it as well."""
        is_shared = self._access.is_shared_scope(client_request.identity)
        return is_shared or not found.missing or (bool(found.entries) and self._is_refused(client_request))

    async def validate(self, client_request: ClientRequest, found: Lookup) -> FetchPlan | Resolved:
        """Probe the upstream with the cheapest item.

        Entries in a credential's own scope are there because the upstream once accepted it. So these are served while
        the upstream does not respond; entries in a shared scope are not.
        """
        is_shared = self._access.is_shared_scope(client_request.identity)
        timeout_s = None if is_shared or found.missing else _PROBE_TIMEOUT_S
        probe = self._probe(client_request, found, may_be_held=timeout_s is None)
        result = await self._revalidator.ask(probe, timeout_s=timeout_s)
        found = found.current()
        failure = None if result is None else result.fetched.failure
        if result is None or (failure is not None and not failure.confirms):
            return await self._respond_unvalidated(client_request, probe, failure, found)
        if failure is not None and found.missing and probe.is_whole:
            return await self._failures.respond(client_request, failure)  # the response to this very body
        fetched = replace(result.fetched, failure=None)
        is_confirmed = failure is not None or fetched.is_by_origin
        first, policy = fetched if result.is_own else NOTHING, policy_of(client_request, self._cache)
        if not is_confirmed and (is_shared or self._is_refused(client_request)):
            # A fallback's success validates nothing: don't serve entries of a shared scope, or of a refused credential.
            return FetchPlan(Lookup.nothing(client_request.spec.keys), policy.private(), first.bill)
        # Another request's vectors may be of another length, since it may have asked for other dimensions.
        count = count_model_versions if result.is_own else count_models
        if count(found.entries, fetched.entries) > 1:
            return FetchPlan(Lookup.nothing(client_request.spec.keys), policy.refreshing(), first.bill)
        if found.missing:
            return FetchPlan(found, policy, first)
        return RequestOutcome.HIT, self._responses.hit_of(
            client_request, found, deliveries=first.deliveries, detail="validated"
        )

    def _probe(self, client_request: ClientRequest, found: Lookup, *, may_be_held: bool) -> FetchRequest:
        """A request for the cheapest item: of the missing ones, or if there is none, of all.

        ``may_be_held``: while the upstream's rate limit takes no call the probe waits; otherwise it fails at once, and
        what is stored is served as if the upstream could not be reached.
        """
        kind, keys = client_request.parsed.kind, list(dict.fromkeys(client_request.spec.keys))
        candidates = found.missing or keys
        items = zip(candidates, client_request.items(candidates), strict=True)
        cheapest, _ = min(items, key=lambda item: tokens.weight(kind, item[1]))
        policy = policy_of(client_request, self._cache)
        has_missing = bool(found.missing)  # if not, hits are served also to a client whose budget is used up
        policy = policy._replace(
            may_join=False,
            is_stored=policy.is_stored and has_missing,
            is_budgeted=has_missing,
            may_be_held=may_be_held,
        )
        return client_request.request(keys, policy).only([cheapest])

    async def _respond_unvalidated(
        self, client_request: ClientRequest, probe: FetchRequest, failure: Failure | None, found: Lookup
    ) -> Resolved:
        """The response if the upstream failed, or did not respond in time."""
        if failure is not None and failure.is_rejection and found.entries.keys() >= set(probe.keys):
            # The upstream accepted the credential for the same item before.
            self._validations.refuse(client_request.credential)
        # Something is missing only if the credential was refused. It may have been accepted for another request since.
        if failure is not None and (
            found.missing
            or self._access.is_shared_scope(client_request.identity)
            or failure.is_verdict
            or blame(failure.cause) is Blame.CALL
        ):
            return await self._failures.respond(client_request, failure)
        if self._is_refused(client_request):  # no response is no permission
            if failure is not None:
                return await self._failures.respond(client_request, failure)
            raise CredentialRefused("The upstream refused this API key, and has not accepted it since.")
        return RequestOutcome.HIT, self._responses.hit_of(client_request, found, detail="unvalidated")

    def _is_refused(self, client_request: ClientRequest) -> bool:
        return self._validations.is_refused(client_request.credential)
