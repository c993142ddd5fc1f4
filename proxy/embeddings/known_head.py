"""What a connection knows of the head that its client repeats, and of the bodies that come with it.

With both, a request for other texts is understood without being parsed as a whole.
"""

from collections.abc import Mapping

from msgspec.structs import replace
from multidict import CIMultiDict

from proxy.embeddings.request_memo import MemoEntry
from proxy.embeddings.sighting import ID_NAMES
from proxy.fetch.limit_wait import LimitWait
from proxy.fetch.request import ClientRequest
from proxy.http.head_template import HeadTemplate
from proxy.ledger.row import Row
from proxy.protocol.header_kinds import Fields
from proxy.protocol.identities import Identity
from proxy.protocol.input_template import InputTemplate
from proxy.protocol.items import ItemKind
from proxy.protocol.keys import TextKeys
from proxy.protocol.provider import InputFormat
from proxy.protocol.response_spec import ResponseSpec
from proxy.reservation import MemoryReservation
from proxy.telemetry.recent_request import RequestDetail
from proxy.telemetry.tracing import NO_SPAN, Span

GivenTexts = str | list[str]  # the value of ``input``

_MAX_BODIES = 4
_MANY_UNMATCHED = 32
# Larger requests begin one by one (`proxy.embeddings.reader`).
_MAX_ITEMS = 256


class KnownHead(HeadTemplate):
    """A head, and the requests that had it and got embeddings. It ends with its connection, as does the credential in
    it. It also ends when the client keys are reloaded, and when an epoch begins."""

    __slots__ = ("_bodies", "_unmatched", "access_version", "has_hit", "is_new", "max_items")

    def __init__(self, before: bytes, holes: list[tuple[str, bytes]]) -> None:
        super().__init__(before, holes)
        self._bodies: list[KnownBody] = []
        self._unmatched = 0  # requests since a body matched a known one
        self.is_new = True  # no request has come with it again
        self.has_hit = False  # one with it was a hit
        self.access_version = 0
        self.max_items = _MAX_ITEMS  # of requests that are not parsed; fewer once a response was too large for that

    def count_request(self) -> bool:
        """Count a parsed request with this head. Returns whether to learn its body: fewer are learned from a client
        whose bodies never match a known one."""
        self.is_new = False
        self._unmatched += 1
        return self._unmatched <= _MANY_UNMATCHED or self._unmatched % _MANY_UNMATCHED == 0

    def add(self, body: "KnownBody") -> None:
        self._bodies = [*self._bodies[1 - _MAX_BODIES :], body]

    def match_body(self, body: bytes) -> "tuple[KnownBody, GivenTexts] | None":
        """The known body that the ``body`` of a request with this head fits, and its input; None: it has to be
        parsed."""
        for known in self._bodies:
            if (given := known.match(body, self.max_items)) is not None:
                self._unmatched = 0
                return known, given
        return None


class KnownBody:
    """A body of texts, for others that differ from it in nothing else."""

    __slots__ = (
        "_accepts_list",
        "_accepts_text",
        "_example",
        "_input",
        "_known",
        "_names",
        "client",
        "detail",
        "keys",
        "own",
        "user_agent",
    )

    def __init__(
        self,
        client_request: ClientRequest,
        input_template: InputTemplate,
        text_keys: TextKeys,
        row: Row,
        own: Identity,
    ) -> None:
        provider, spec = client_request.origin.provider, client_request.spec
        self._example = _without_texts(client_request)
        # The fields that may differ. Their names go upstream as the client writes them.
        self._names = {name.lower(): name for name in self._example.received if name.lower() in ID_NAMES}
        self.own = own
        self.client = client_request.client
        self.user_agent = client_request.received.get("User-Agent")
        self.detail: RequestDetail | None = None  # of all such requests; set when it is first needed
        self._input = input_template
        self.keys = text_keys.of
        self._known = replace(MemoEntry.of(client_request, row), spec=replace(spec, keys=()))
        self._accepts_text = InputFormat.TEXT in provider.inputs
        self._accepts_list = InputFormat.TEXTS in provider.inputs and not provider.is_fused_model(spec.model)

    @classmethod
    def of(cls, client_request: ClientRequest, scope: Fields, row: Row, own: Identity) -> "KnownBody | None":
        """``scope`` is that of the request's keys, ``row`` and ``own`` identity are those of its client. None if the
        texts may change more than their own keys."""
        parsed, provider = client_request.parsed, client_request.origin.provider
        if parsed.kind is not ItemKind.TEXT or "modality" in parsed.parameters or provider.references:
            return None
        found = InputTemplate.of(parsed.body, parsed.fields)
        if found is None:
            return None
        text_keys = TextKeys(
            parsed,
            url=client_request.credential.scope.url,
            scope=scope,
            vector_headers=client_request.identity.vector_affecting,
            epoch=client_request.epoch,
        )
        return cls(client_request, found, text_keys, row, own)

    def match(self, body: bytes, max_items: int) -> GivenTexts | None:
        """The input of ``body``. None if it is not of this kind, or has more than ``max_items``."""
        given = self._input.texts(body)
        if isinstance(given, str):
            return given if self._accepts_text else None
        return given if given is not None and self._accepts_list and len(given) <= max_items else None

    def entry(self, given: GivenTexts) -> MemoEntry:
        """What `MemoEntry.of` returns for a parsed request with this input."""
        return self.entry_of_keys(self.keys([given] if isinstance(given, str) else given))

    def entry_of_keys(self, keys: list[bytes]) -> MemoEntry:
        """The same for an input of which these are the `keys`."""
        return replace(self._known, spec=replace(self._known.spec, keys=tuple(keys)))

    def client_request(
        self,
        body: bytes,
        given: GivenTexts,
        spec: ResponseSpec,
        *,
        fields: Mapping[str, str],
        reservation: MemoryReservation,
        span: Span,
    ) -> ClientRequest:
        """What the reader returns for a parsed request with this ``body``. ``fields`` are the header fields in which
        its head differs from others."""
        example = self._example.parsed
        parsed = example._replace(
            items=[given] if isinstance(given, str) else given, fields=example.fields | {"input": given}, body=body
        )
        own_fields = {self._names[name]: value for name, value in fields.items()}
        return self._example.like(parsed, spec, reservation, span, own_fields)


def _without_texts(client_request: ClientRequest) -> ClientRequest:
    """``client_request`` without its texts and its length, and without its span and other state."""
    parsed = client_request.parsed
    received = CIMultiDict(client_request.received)
    received.popall("Content-Length", None)
    return replace(
        client_request,
        parsed=parsed._replace(items=[], fields=parsed.fields | {"input": None}, body=b""),
        spec=replace(client_request.spec, keys=()),
        received=received,
        span=NO_SPAN,
        limit_wait=LimitWait(),
        _headers=None,
    )
