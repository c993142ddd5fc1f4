"""Entries as a Parquet file, for analysts. pyarrow is an extra, so this module is imported only where it is needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from proxy.cache.store import Store
from proxy.maintenance.archive import finish_part, open_part
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
    with open_part(path, b"PAR1") as (part, file):
        file.truncate(0)  # the beginning of an interrupted export can't be continued
        entries = await _write(store, file, advance)
        size_bytes = finish_part(file, part, path)
    return Exported(entries=entries, bytes=size_bytes, is_resumed=False)


async def _write(store: Store, file: BinaryIO, advance: Advance) -> int:
    entries, rows = 0, list[dict[str, Any]]()
    with pq.ParquetWriter(file, _SCHEMA, compression="zstd") as writer:
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
