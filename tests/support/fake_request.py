"""A request as far as the embeddings route reads one, without a connection."""

from typing import Any

import orjson
from multidict import CIMultiDict, CIMultiDictProxy


class FakeRequest:
    content_type = "application/json"
    body_exists = True
    raw_path = "/v1/embeddings"
    protocol = None  # it came over no connection

    def __init__(self, items: list[str], fields: dict[str, str], **more: Any) -> None:
        """``more`` are further members of the body."""
        self._body = orjson.dumps({"model": "m", "input": items, **more})
        self.headers = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json", **fields}))
        self.content_length = len(self._body)
        self.content = self

    def is_eof(self) -> bool:
        return True

    def read_nowait(self) -> bytes:
        return self._body
