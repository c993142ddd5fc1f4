"""The numbers of an array as JSON (pure).

By ssrjson if it is installed (the extra `fast`), which takes about half the time for floats. Its exponents have other
texts (``1e-05``, not ``0.00001``), which parse to the same numbers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_FLOAT = "f"  # a `numpy.dtype.kind`


def by_orjson(values: NDArray[Any]) -> bytes:
    # Copied, because orjson returns its write buffer, which may be twice as long as the text.
    return bytes(memoryview(orjson.dumps(values, option=_NUMPY)))


def _by_ssrjson() -> Callable[[NDArray[Any]], bytes] | None:
    try:
        import ssrjson  # noqa: PLC0415 - optional
    except ImportError:
        return None
    ssrjson.setup_numpy_types(np)
    dumps: Callable[[NDArray[Any]], bytes] = ssrjson.dumps_to_bytes
    return dumps


_floats_by_ssrjson = _by_ssrjson()


def number_text(values: NDArray[Any]) -> bytes:
    """A JSON array of finite numbers. A float is the shortest text that reads back as the same float of its type."""
    if _floats_by_ssrjson is not None and values.dtype.kind == _FLOAT:
        return _floats_by_ssrjson(values)
    return by_orjson(values)
