"""A Parquet file with a column of texts and a column of their vectors. Needs the extra `parquet`."""

from pathlib import Path
from typing import Any

from proxy.errors import ConfigError
from proxy.filling.paid import Paid, PaidText
from proxy.filling.results import RefusedText

_MAGIC = b"PAR1"
_TEXTS, _VECTORS = ("text", "input"), ("embedding", "vector")
_ROWS = 1024
_ACCEPTED = 'accepted: a column "text" or "input" of strings, and "embedding" or "vector" of lists of numbers'


def is_parquet(path: Path) -> bool:
    if not path.is_file():
        return False  # what is read here of a pipe would be lost to its reader
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False  # the reader reports it


def read_parquet_file(path: Path) -> Paid:
    """Raises `ConfigError`, also during the iteration."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - it is an extra
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"{path}: a Parquet file, which needs PyArrow: pip install 'embedding-cache-proxy[parquet]'"
        ) from error
    try:
        with pq.ParquetFile(path) as file:
            names = [_column(file.schema_arrow.names, accepted, path) for accepted in (_TEXTS, _VECTORS)]
            _forbid_other_types(pa, file.schema_arrow, names, path)
            row = 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=names):
                texts, vectors = (batch.column(name) for name in names)
                for text, vector in zip(texts, vectors, strict=True):
                    row += 1
                    yield _paid(row, text.as_py(), vector)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())[:200]}") from error


def _column(names: list[str], accepted: tuple[str, ...], path: Path) -> str:
    found = next((name for name in accepted if name in names), None)
    if found is None:
        raise ConfigError(f"{path}: its columns are {', '.join(names)[:200]}; {_ACCEPTED}")
    return found


def _forbid_other_types(pa: Any, schema: Any, names: list[str], path: Path) -> None:
    text, vector = (schema.field(name).type for name in names)
    is_list = pa.types.is_list(vector) or pa.types.is_large_list(vector) or pa.types.is_fixed_size_list(vector)
    element = vector.value_type if is_list else vector
    is_number = pa.types.is_float32(element) or pa.types.is_float64(element) or pa.types.is_integer(element)
    if not (pa.types.is_string(text) or pa.types.is_large_string(text)) or not is_list or not is_number:
        raise ConfigError(f"{path}: its columns are {names[0]} of {text} and {names[1]} of {vector}; {_ACCEPTED}")


def _paid(row: int, text: str | None, vector: Any) -> PaidText | RefusedText:
    if not text:
        return RefusedText(row, "no text")
    if not vector.is_valid or vector.values.null_count:
        return RefusedText(row, "no vector, or null in it")
    return PaidText(row, text, vector.values.to_numpy(zero_copy_only=False))
