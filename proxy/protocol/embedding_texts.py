"""The texts of a response's embeddings, cut out of it without parsing them (pure).

A response is nearly all embeddings. What is left of it without them is small, and shows its structure.
"""

import re
from typing import NamedTuple

from proxy.steps import Steps

_NAME = b'"embedding":'
_ENDS = {ord("["): b"]", ord('"'): b'"'}
_MEMBER = re.compile(rb'"embedding"[ \t\r\n]*:')


class Cut(NamedTuple):
    """The response is ``outline`` with the i-th of ``texts``, an array or a string, in place of the number i, the value
    of the i-th member ``embedding``. No other member has that name.

    The response is valid JSON if and only if all of these are. An array may still have other arrays in it.
    """

    outline: bytes
    texts: list[memoryview]  # of the response


def cut(body: bytes, items: int) -> Steps[Cut | None]:
    """Cut ``items`` embeddings out of a response. None for one that is written in an unusual way, or has not as many.

    A text begins after the unescaped quote and the colon of a member's name, so outside strings, and it is whole: an
    array ends at the first bracket, unless there is an array or a string in it, and a string at the first quote, unless
    it has escaped characters, as no base64 needs.
    """
    outline: list[bytes] = []
    texts: list[memoryview] = []
    view, end = memoryview(body), 0
    while (name := body.find(_NAME, end)) >= 0:
        start = name + len(_NAME)
        start += body[start : start + 1] == b" "
        closing = _ENDS.get(body[start]) if start < len(body) else None
        if closing is None or len(texts) == items:
            return None
        outline += (body[end:start], b"%d" % len(texts))
        end = body.find(closing, start + 1) + 1
        if not end:
            return None
        texts.append(view[start:end])
        yield
    outline.append(body[end:])
    rest = b"".join(outline)
    yield
    # An escape might hide a member of the same name, whose value would count in place of the one that was cut out.
    if len(texts) != items or b"\\" in rest or len(_MEMBER.findall(rest)) != items:
        return None
    return Cut(rest, texts)
