"""Spines from whoever may upload one: what few bytes may stand for, and that all else is read as it was written."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from featurelib.errors import InvalidRequest, PayloadTooLarge
from featurelib.stores import spine_sources
from featurelib.stores.spine_sources import open_spine

ROWS = 1_000
COLUMNS = {
    "text": pa.array(["é", None] * 500),
    "large text": pa.array(["a", None] * 500, pa.large_string()),
    "view": pa.array(["a", None] * 500, pa.string_view()),
    "bytes": pa.array([b"\x00\xff", None] * 500),
    "bytes of one length": pa.array([b"abcd"] * ROWS, pa.binary(4)),
    "text of a dictionary": pa.array(["a", None] * 500).dictionary_encode(),
    "dot.ted": pa.array([str(number) for number in range(ROWS)]),
    "list": pa.array([["a", None, "b"], None] * 500),
    "list of views": pa.array([["a"]] * ROWS, pa.list_(pa.string_view())),
    "list of two": pa.array([["a", "b"]] * ROWS, pa.list_(pa.string(), 2)),
    "list of lists": pa.array([[["a"], []]] * ROWS),
    "struct": pa.array([{"x": "y", "z": 1}, None] * 500),
    "map": pa.array([[("k", "v")], []] * 500, pa.map_(pa.string(), pa.string())),
    "decimal": pa.array([Decimal("1.5")] * ROWS),
    "nothing": pa.nulls(ROWS),
}


@pytest.mark.parametrize("how", [{}, {"use_dictionary": False}, {"store_schema": False}])
def test_a_parquet_file_is_read_as_arrow_reads_it_whatever_its_columns_are(tmp_path, how):
    path = tmp_path / "spine.parquet"
    pq.write_table(pa.table(COLUMNS), path, **how)
    expected = pq.read_table(path).replace_schema_metadata(None)
    spine = open_spine(str(path))
    batches = list(spine.batches(300))
    assert [len(batch) for batch in batches] == [300, 300, 300, 100]
    assert spine.schema.equals(expected.schema)
    assert pa.Table.from_batches(batches).equals(expected)


def written(path: Path, column: pa.Array, **how: Any) -> str:
    # Without the schema of Arrow nothing says that the column is one of codes.
    pq.write_table(pa.table({"x": column}), path, store_schema=False, dictionary_pagesize_limit=1 << 30, **how)
    return str(path)


@pytest.mark.parametrize("inside", ["column", "list", "struct", "map"])
def test_a_text_that_stands_in_every_row_is_counted_as_often_as_it_stands_there(tmp_path, monkeypatch, inside):
    monkeypatch.setattr(spine_sources, "_MOST_BYTES", 10_000_000)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), pa.array(["x" * 100_000]))
    each = pa.array(range(ROWS + 1), pa.int32())
    columns = {
        "column": texts,
        "list": pa.ListArray.from_arrays(each, texts),
        "struct": pa.StructArray.from_arrays([texts], ["y"]),
        "map": pa.MapArray.from_arrays(each, pa.array(range(ROWS)), texts),
    }
    spine = open_spine(written(tmp_path / "spine.parquet", columns[inside]))
    before = pa.total_allocated_bytes()
    with pytest.raises(PayloadTooLarge, match=r"1,000 rows of spine\.parquet hold 100,000,000 bytes of text"):
        next(spine.batches(ROWS))
    assert pa.total_allocated_bytes() - before < 10_000_000
    assert len(next(spine.batches(50))) == 50


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"\x00" * 100_000] * 200),
        pa.array([[0] * 2_000_000], pa.list_(pa.int8())),
        pa.array([b"x" * 100_000] * 200, pa.binary(100_000)),
    ],
    ids=["zeros", "a list of one number", "bytes of one length"],
)
def test_a_row_group_that_is_far_larger_than_its_bytes_is_refused_before_it_is_read(tmp_path, monkeypatch, column):
    monkeypatch.setattr(spine_sources, "_MOST_BYTES", 10_000_000)
    packed = {"compression": "zstd", "use_dictionary": column.type != pa.binary()}
    with pytest.raises(PayloadTooLarge, match=r"row group 0 of spine\.parquet .* write smaller row groups"):
        open_spine(written(tmp_path / "spine.parquet", column, **packed))


def test_a_column_of_json_which_nobody_can_measure_is_refused(tmp_path):
    column = pa.array(['{"a": 1}'] * 2, pa.json_())
    with pytest.raises(InvalidRequest, match="'x' is JSON; store it as text"):
        open_spine(written(tmp_path / "spine.parquet", column))


def test_an_arrow_stream_whose_offsets_point_elsewhere_is_refused(tmp_path):
    path = tmp_path / "spine.arrows"
    batch = pa.record_batch({"x": pa.array(["abcd", "efgh"])})
    with pa.ipc.new_stream(path, batch.schema) as writer:
        writer.write(batch)
    offsets = struct.pack("<3i", 0, 4, 8)
    whole = path.read_bytes()
    assert whole.count(offsets) == 1
    path.write_bytes(whole.replace(offsets, struct.pack("<3i", 0, 1 << 30, 8)))
    with pytest.raises(InvalidRequest, match="cannot be read"):
        open_spine(str(path)).count_rows()


# Arrow: a stream, or a file with one in it.


FORMS = pytest.mark.parametrize("name", ["spine.arrow", "spine.arrows"])


def streamed(path: Path, table: pa.Table, rows: int | None = None, **how: Any) -> str:
    opened = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
    with opened(path, table.schema, options=pa.ipc.IpcWriteOptions(**how)) as writer:
        writer.write_table(table, rows)
    return str(path)


@FORMS
@pytest.mark.parametrize("how", [{}, {"compression": "lz4"}, {"compression": "zstd"}])
def test_arrow_is_read_as_it_was_written_whatever_its_columns_are(tmp_path, name, how):
    texts = pa.array(["long enough for no view to hold it", "b"] * 500)
    table = pa.table({**COLUMNS, "dictionary of views": texts.cast(pa.string_view()).dictionary_encode()})
    spine = open_spine(streamed(tmp_path / name, table, 300, **how))
    assert spine.schema.equals(table.schema)
    assert spine.count_rows() == ROWS
    batches = list(spine.batches(200))
    assert [len(batch) for batch in batches] == [200, 100, 200, 100, 200, 100, 100]
    assert pa.Table.from_batches(batches).equals(table)


def test_a_file_of_feather_and_one_of_polars_are_read(tmp_path):
    frame = pl.DataFrame({"id": ["a", "b"], "kind": pl.Series(["x", None], dtype=pl.Categorical), "at": [1, 2]})
    frame.write_ipc(tmp_path / "polars.ipc", compression="zstd")
    feather.write_feather(frame.to_arrow(), str(tmp_path / "spine.feather"))
    for name in ("polars.ipc", "spine.feather"):
        found = pa.Table.from_batches(list(open_spine(str(tmp_path / name)).batches(10)))
        assert pl.from_arrow(found).cast({"kind": pl.String}).equals(frame.cast({"kind": pl.String}))


@contextmanager
def at_most(bytes_taken: int) -> Iterator[None]:
    """Arrow takes no more memory at any time."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        yield
        assert pool.max_memory() < bytes_taken
    finally:
        pa.set_memory_pool(before)


@FORMS
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("column", ["numbers", "dictionary"])
def test_a_batch_that_is_far_larger_than_its_bytes_is_refused_before_it_is_read(
    tmp_path, monkeypatch, name, compression, column
):
    monkeypatch.setattr(spine_sources, "_MOST_BYTES", 1_000_000)
    grown = pa.array(np.zeros(1_000_000, dtype=np.int64))
    coded = pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), ["x" * 8_000_000])
    table = pa.table({"x": grown if column == "numbers" else coded})
    path = streamed(tmp_path / name, table, compression=compression)
    refused = pytest.raises(PayloadTooLarge, match=rf"{name}, with its dictionaries, has .* 8,\d\d\d,\d\d\d in memory")
    with at_most(1_000_000), refused:
        open_spine(path).count_rows()


@FORMS
def test_dictionaries_count_together(tmp_path, monkeypatch, name):
    """They are all kept, also those that no row uses."""
    monkeypatch.setattr(spine_sources, "_MOST_BYTES", 1_000_000)
    unused = pa.DictionaryArray.from_arrays(pa.array([None] * 3, pa.int8()), ["x" * 300_000])
    table = pa.table({f"x{number}": unused for number in range(5)})
    path = streamed(tmp_path / name, table, compression="zstd")
    with at_most(1_000_000), pytest.raises(PayloadTooLarge, match="with its dictionaries"):
        open_spine(path).count_rows()


@FORMS
@pytest.mark.parametrize(
    "column",
    [
        pa.nulls(1_000_000),
        pa.ListArray.from_arrays(pa.array([0, 1_000_000], pa.int32()), pa.nulls(1_000_000)),
        pa.ListArray.from_arrays(pa.array([0, 1_000_000], pa.int32()), pa.array(np.zeros(1_000_000, dtype=np.bool_))),
    ],
    ids=["nulls", "list of nulls", "list of bits"],
)
def test_entries_that_hardly_take_bytes_are_counted_as_values(tmp_path, monkeypatch, name, column):
    monkeypatch.setattr(spine_sources, "_MOST_BYTES", 1_000_000)
    monkeypatch.setattr(spine_sources, "_MOST_RATIO", 1)
    with pytest.raises(PayloadTooLarge, match="8,000,000 in memory"):
        open_spine(streamed(tmp_path / name, pa.table({"x": column}))).count_rows()


def test_a_batch_that_says_in_the_old_way_that_it_is_compressed_is_refused(tmp_path):
    """Arrow reads it: of format version 4, with metadata of its own that name the compression."""
    path = tmp_path / "spine.arrows"
    table = pa.table({"x": [1, 2, 3]})
    options = {"metadata_version": pa.ipc.MetadataVersion.V4}
    assert list(map(len, open_spine(streamed(path, table, **options)).batches(10))) == [3]
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(table.to_batches()[0], custom_metadata={"ARROW:experimental_compression": "zstd"})
    with pytest.raises(InvalidRequest, match=r"of before Arrow 1\.0 has metadata of its own"):
        open_spine(str(path)).count_rows()


def test_a_block_that_holds_two_messages_is_refused(tmp_path):
    """Arrow's own reader of files takes the last one: another than would be measured."""
    path = tmp_path / "spine.arrow"
    table = pa.table({"x": [1, 2, 3]})
    body = bytearray(Path(streamed(path, table, 2)).read_bytes())
    footer = len(body) - 10 - struct.unpack_from("<i", body, len(body) - 10)[0]
    block = struct.Struct("<qi4xq")
    places = range(footer, len(body) - 2 * block.size)
    pairs = [(place, *(block.unpack_from(body, place + after) for after in (0, block.size))) for place in places]
    ((place, (offset, head, size), (_, last_head, last_size)),) = [
        pair for pair in pairs if 0 < sum(pair[1]) == pair[2][0] < footer
    ]
    block.pack_into(body, place, offset, head + size + last_head, last_size)
    path.write_bytes(body)
    with pytest.raises(InvalidRequest, match="not as long as its footer says"):
        open_spine(str(path)).count_rows()


def test_a_footer_whose_schema_lies_outside_of_it_is_refused(tmp_path):
    path = tmp_path / "spine.arrow"
    body = bytearray(Path(streamed(path, pa.table({"x": [1]}))).read_bytes())
    footer = len(body) - 10 - struct.unpack_from("<i", body, len(body) - 10)[0]
    table = footer + struct.unpack_from("<I", body, footer)[0]
    members = table - struct.unpack_from("<i", body, table)[0]
    schema = table + struct.unpack_from("<H", body, members + 6)[0]
    struct.pack_into("<I", body, schema, 0xFFFFFFF0)
    path.write_bytes(body)
    with pytest.raises(InvalidRequest, match="lies outside of its footer"):
        open_spine(str(path))


@pytest.mark.parametrize(
    "column",
    [
        pl.Series(["x" * 100_000]).gather([0] * ROWS).to_arrow(compat_level=pl.CompatLevel.newest()),
        pl.Series([b"x" * 100_000]).gather([0] * ROWS).to_arrow(compat_level=pl.CompatLevel.newest()),
        pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int8()), pa.array(["x" * 100_000], pa.string_view())),
        pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int8()), pa.array([b"x" * 100_000], pa.binary(100_000))),
        pa.ExtensionArray.from_storage(
            pa.opaque(pa.dictionary(pa.int8(), pa.string()), "codes", "test"),
            pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int8()), ["x" * 100_000]),
        ),
    ],
    ids=["view", "bytes", "dictionary of views", "dictionary of bytes", "extension"],
)
def test_a_text_that_arrow_shares_between_rows_is_counted_as_often_as_it_stands_there(tmp_path, monkeypatch, column):
    monkeypatch.setattr(spine_sources, "_MOST_BYTES", 10_000_000)
    spine = open_spine(streamed(tmp_path / "spine.arrow", pa.table({"x": column})))
    with pytest.raises(PayloadTooLarge, match=r"1,000 rows .* 100,000,000 bytes of text"):
        list(spine.batches(ROWS))


@pytest.mark.parametrize(
    "column",
    [
        pa.RunEndEncodedArray.from_arrays([3], ["x"]),
        pa.ListViewArray.from_arrays(pa.array([0] * 3, pa.int32()), pa.array([2] * 3, pa.int32()), pa.array([1, 2])),
        pa.UnionArray.from_dense(pa.array([0] * 3, pa.int8()), pa.array([0] * 3, pa.int32()), [pa.array(["x"])]),
        pa.DictionaryArray.from_arrays(pa.array([0] * 3, pa.int8()), pa.array([[1, 2]])),
        pa.ExtensionArray.from_storage(
            pa.opaque(pa.run_end_encoded(pa.int32(), pa.string()), "runs", "test"),
            pa.RunEndEncodedArray.from_arrays(pa.array([3], pa.int32()), ["x"]),
        ),
    ],
    ids=["runs", "list views", "union", "dictionary of lists", "extension"],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_column_whose_entries_many_rows_may_share_is_refused(tmp_path, column, inside):
    column = pa.StructArray.from_arrays([column], ["y"]) if inside else column
    with pytest.raises(InvalidRequest, match=r"the column 'x' is Arrow's .*; cast it, or leave it out"):
        open_spine(streamed(tmp_path / "spine.arrows", pa.table({"x": column})))


@FORMS
def test_arrow_that_is_changed_anywhere_is_read_or_refused(tmp_path, name):
    path = tmp_path / name
    table = pa.table({"x": pa.array(["a", "b"]).dictionary_encode(), "y": [1, 2]})
    body = Path(streamed(path, table, compression="lz4")).read_bytes()
    read = 0
    for place in range(0, len(body), 3):
        path.write_bytes(body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :])
        with suppress(InvalidRequest, PayloadTooLarge):
            read += sum(map(len, open_spine(str(path)).batches(10)))
    assert read
