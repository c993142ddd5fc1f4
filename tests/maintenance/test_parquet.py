"""Entries as Parquet: each valid record is a row, with exactly its numbers."""

import fcntl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.errors import ConfigError
from proxy.maintenance.parquet import export_parquet
from proxy.protocol import records, vectors
from proxy.protocol.records import Record
from proxy.protocol.vectors import Vector
from tests.maintenance.test_transfer import NOW_S, VALUES, holding, ignore
from tests.support.dict_store import key_of

pq: Any = pytest.importorskip("pyarrow.parquet")

NUMBERS = st.one_of(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=4),
    st.lists(st.integers(-128, 127), min_size=1, max_size=4),
)


async def exported(values: dict[bytes, bytes], path: Path) -> list[dict[str, Any]]:
    done = await export_parquet(holding(values), path, advance=ignore)
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    assert done.entries == len(rows)
    assert done.bytes == path.stat().st_size
    assert path.stat().st_mode & 0o077 == 0
    return rows


async def test_each_valid_record_is_a_row(tmp_path: Path) -> None:
    rows = await exported(VALUES | {key_of(10_000): b"damaged"}, tmp_path / "file")
    assert [row["key"] for row in rows] == list(VALUES)
    row = rows[5]
    assert row["stored_at"].timestamp() == NOW_S
    assert {name: row[name] for name in row if name not in {"key", "stored_at"}} == {
        "model": "m", "dimensions": 2, "dtype": "float32", "tokens": 1, "vector": [5.0, 0.5],
        "scope": "02" * 8,
    }  # fmt: skip
    assert rows[6]["scope"] is None  # stored by an earlier version


@given(numbers=NUMBERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
async def test_numbers_stay_the_same(tmp_path: Path, numbers: list[float]) -> None:
    numbers = [1 if isinstance(numbers[0], int) else 1.0, *numbers]  # not all zero, which no record can be
    vector: Vector = vectors.from_numbers(numbers)
    record = Record(vector=vector, model="", tokens=1, tokens_exact=True, stored_at_s=0)
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    (row,) = await exported({key_of(1): records.encode(key_of(1), record)}, path)
    assert row["vector"] == numbers


async def test_an_empty_store_and_a_file_that_is_there(tmp_path: Path) -> None:
    assert await exported({}, tmp_path / "file") == []
    with pytest.raises(ConfigError, match="it exists already"):
        await exported({}, tmp_path / "file")
    with pytest.raises(ConfigError, match="No such file or directory"):
        await exported({}, tmp_path / "none" / "file")


async def test_an_interrupted_export_begins_again_and_another_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / "file.part").write_bytes(b"PAR1" + b"\xff" * 100_000)
    store = holding(VALUES)
    scan = store.scan

    async def scan_during_another(cursor: bytes = b"") -> object:
        with pytest.raises(ConfigError, match="another export writes it"):
            await exported(VALUES, path)
        return await scan(cursor)

    store.scan = scan_during_another  # type: ignore[method-assign, assignment]
    done = await export_parquet(store, path, advance=ignore)
    assert done.bytes == path.stat().st_size < 100_000
    assert len(pq.read_table(path)) == done.entries == len(VALUES)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


async def test_a_file_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="something else than an interrupted export"):
        await exported(VALUES, tmp_path / "file")
    assert (tmp_path / "file.part").read_bytes() == b"mine"


async def test_another_export_that_ends_before_the_file_is_locked_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, part = tmp_path / "file", tmp_path / "file.part"
    part.write_bytes(b"PAR1 of the other")
    monkeypatch.setattr(fcntl, "flock", lambda *_: part.rename(path))
    with pytest.raises(ConfigError, match="it exists already"):
        await exported(VALUES, path)
    assert path.read_bytes() == b"PAR1 of the other"
