"""A NumPy file of vectors beside a file of their texts."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxy.errors import ConfigError
from proxy.filling.corpus import forbid_pipe, read_texts
from proxy.filling.paid import Paid, PaidText

_KINDS = {"f4", "f8", "i1", "u1", "i2", "i4", "i8"}
_MATRIX = 2
_ACCEPTED = "accepted: a .npy file of a matrix of float32, float64 or integers, a row a text"


def read_array_file(texts: Path, vectors: Path) -> Paid:
    """The texts, each with the row of its vector. Raises `ConfigError`, also for a line without a text: every row after
    it would get the wrong text."""
    forbid_pipe(texts)
    matrix = _read_matrix(vectors)
    count = sum(1 for _ in read_texts(texts))
    if count != len(matrix):
        raise ConfigError(
            f"{texts} has {count:,} texts and {vectors} {len(matrix):,} rows; accepted: a row for each text"
        )
    for row, text in enumerate(read_texts(texts)):
        yield PaidText(text.line, text.text, matrix[row])


def _read_matrix(path: Path) -> NDArray[Any]:
    try:
        matrix = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # also for objects, which would have to be unpickled
        raise ConfigError(f"{path}: not a NumPy file; {_ACCEPTED}") from error
    if matrix.ndim != _MATRIX:
        raise ConfigError(f"{path}: not a matrix; {_ACCEPTED}")
    if matrix.dtype.str[1:] not in _KINDS:
        raise ConfigError(f"{path}: its type is {matrix.dtype.name}, which no upstream writes; {_ACCEPTED}")
    return matrix
