"""What the response to a request is made from, besides the entries of its items (pure)."""

from msgspec import Struct

from proxy.protocol.vectors import Encoding


class ResponseSpec(Struct, frozen=True, gc=False):
    model: str | None  # as the client named it, in the body or else in the path
    encoding: Encoding
    keys: tuple[bytes, ...]  # of the items, in input order
    has_id: bool = False  # responses have a field of that name
    is_keyed_whole: bool = False  # the keys are of the request as a whole
