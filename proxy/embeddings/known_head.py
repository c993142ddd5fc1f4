"""What a connection knows of the head that its client repeats, and of the bodies that come with it.

With both, a request for other texts is understood without being parsed as a whole.
"""

from msgspec.structs import replace

from proxy.embeddings.request_memo import MemoEntry
from proxy.fetch.request import ClientRequest
from proxy.http.head_template import HeadTemplate
from proxy.ledger.row import Row
from proxy.protocol.input_template import InputTemplate
from proxy.protocol.items import ItemKind
from proxy.protocol.keys import Fields, TextKeys
from proxy.protocol.provider import InputFormat

_MAX_BODIES = 4
_MANY_UNREAD = 32
# Larger requests begin one by one (`proxy.embeddings.reader`).
_MAX_ITEMS = 256


class KnownHead(HeadTemplate):
    """A head, and the requests that had it and were hits. It lives as long as its connection, like the credential in
    it, and no longer than the client keys that admitted it and the epochs of its keys."""

    __slots__ = ("_bodies", "_unread", "is_new", "keys_version")

    def __init__(self, before: bytes, holes: list[tuple[str, bytes]]) -> None:
        super().__init__(before, holes)
        self._bodies: list[KnownBody] = []
        self._unread = 0  # requests since a body was last read
        self.is_new = True  # no request has come with it again
        self.keys_version = 0

    def is_worth_learning(self) -> bool:
        """Whether a body that comes with this head now may help to read others. Asked once a request: of a client whose
        bodies never help, fewer are learnt."""
        self.is_new = False
        self._unread += 1
        return self._unread <= _MANY_UNREAD or self._unread % _MANY_UNREAD == 0

    def add(self, body: "KnownBody") -> None:
        self._bodies = [*self._bodies[1 - _MAX_BODIES :], body]

    def read(self, body: bytes) -> tuple[MemoEntry, "KnownBody"] | None:
        """What a request with this head and ``body`` means, and the known body that it fits; None: it has to be
        parsed."""
        for known in self._bodies:
            if (entry := known.read(body)) is not None:
                self._unread = 0
                return entry, known
        return None


class KnownBody:
    """A body of texts that was a hit, for others that differ from it in nothing else."""

    __slots__ = ("_accepts_list", "_accepts_text", "_input", "_keys", "_known", "max_items")

    def __init__(
        self,
        client_request: ClientRequest,
        input_template: InputTemplate,
        text_keys: TextKeys,
        row: Row,
    ) -> None:
        provider, spec = client_request.origin.provider, client_request.spec
        self._input = input_template
        self._keys = text_keys
        self._known = replace(MemoEntry.of(client_request, row), spec=replace(spec, keys=()))
        self.max_items = _MAX_ITEMS
        self._accepts_text = InputFormat.TEXT in provider.inputs
        self._accepts_list = InputFormat.TEXTS in provider.inputs and not provider.is_fused_model(spec.model)

    @classmethod
    def of(cls, client_request: ClientRequest, scope: Fields, row: Row) -> "KnownBody | None":
        """``scope`` is that of the request's keys, ``row`` that of its client. None if more than the texts' keys may
        depend on the texts."""
        parsed, provider = client_request.parsed, client_request.origin.provider
        if parsed.kind is not ItemKind.TEXT or "modality" in parsed.parameters or provider.references:
            return None
        found = InputTemplate.of(parsed.body, parsed.fields)
        if found is None:
            return None
        text_keys = TextKeys(
            parsed,
            url=client_request.credential_scope.url,
            scope=scope,
            vector_headers=client_request.identity.vector_affecting,
            epoch=client_request.epoch,
        )
        return cls(client_request, found, text_keys, row)

    def read(self, body: bytes) -> MemoEntry | None:
        """The request with such a ``body``, as `MemoEntry.of` describes it when it is parsed."""
        given = self._input.texts(body)
        if isinstance(given, str):
            texts, is_accepted = [given], self._accepts_text
        elif given is not None:
            texts, is_accepted = given, self._accepts_list and len(given) <= self.max_items
        else:
            return None
        if not is_accepted:
            return None
        return replace(self._known, spec=replace(self._known.spec, keys=tuple(self._keys.of(texts))))
