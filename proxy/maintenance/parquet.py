"""Entries as a Parquet file, for analysts. pyarrow is an extra, so this module is imported only where it is needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from proxy.cache.store import Store
from proxy.errors import ConfigError
from proxy.maintenance.archive import part_of, require_own
from proxy.maintenance.transfer import Advance, Exported, pages
from proxy.protocol import records, vectors
from proxy.protocol.records import InvalidRecord

_SCHEMA = pa.schema(
    [
        ("key", pa.binary(32)),
        ("model", pa.string()),
        ("dimensions", pa.int32()),
        ("dtype", pa.string()),
        ("tokens", pa.int64()),
        ("scope", pa.string()),  # the fingerprint in hexadecimal; null if the record has none
        ("stored_at", pa.timestamp("s", tz="UTC")),
        # The numbers that a client reads in a response. float64 has all of them exactly, except int64 above 2^53.
        ("vector", pa.list_(pa.float64())),
    ]
)
_ROWS_A_GROUP = 2048


async def export_parquet(store: Store, path: Path, *, advance: Advance) -> Exported:
    """Write all valid records of a store to a new file. Raises `StoreError` and `ConfigError`."""
    part = part_of(path)
    try:
        require_own(part, b"PAR1")
        entries = await _write(store, part, advance)
        size_bytes = _finish(part, path)
    except OSError as error:
        raise ConfigError(f"{part}: {error.strerror or error}") from error
    return Exported(entries=entries, bytes=size_bytes, is_resumed=False)


def _finish(part: Path, path: Path) -> int:
    """Give the file its name. Returns its size in bytes."""
    part.rename(path)
    return path.stat().st_size


def _writer(part: Path) -> pq.ParquetWriter:
    part.touch(mode=0o600)  # as with an export of entries
    return pq.ParquetWriter(part, _SCHEMA, compression="zstd")


async def _write(store: Store, part: Path, advance: Advance) -> int:
    entries, rows = 0, list[dict[str, Any]]()
    with _writer(part) as writer:
        async for values, cursor in pages(store):
            rows += _rows(values)
            advance(len(values))
            if len(rows) >= _ROWS_A_GROUP or cursor is None:
                writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
                entries, rows = entries + len(rows), []
    return entries


def _rows(values: Mapping[bytes, bytes]) -> list[dict[str, Any]]:
    """The columns of each valid record."""
    rows = []
    for key, value in values.items():
        try:
            record, _ = records.inspect(key, value)
        except InvalidRecord:
            continue
        rows.append(
            {
                "key": key,
                "model": record.model,
                "dimensions": record.vector.dimensions,
                "dtype": record.vector.dtype.name.lower(),
                "tokens": record.tokens,
                "scope": record.scope.hex() or None,
                "stored_at": record.stored_at_s,
                "vector": np.asarray(orjson.loads(vectors.numbers_json(record.vector)), "f8"),
            }
        )
    return rows
