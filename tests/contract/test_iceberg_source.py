"""Iceberg tables in a real SQL catalog: snapshots, row deletes, rewritten files, schema changes, expired history."""

import itertools
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import EqualTo, In
from pyiceberg.io.pyarrow import _dataframe_to_data_files
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
)
from pyiceberg.table.snapshots import Operation, Summary
from pyiceberg.table.update.snapshot import _FastAppendFiles, _OverwriteFiles
from pyiceberg.typedef import Record
from pyiceberg.types import StringType
from pyiceberg.utils.config import Config

from featurelib.clock import SystemClock
from featurelib.connectors import connect
from featurelib.definitions import ConnectorDef, SourceDef
from featurelib.errors import SourceError
from featurelib.sources import IcebergSource
from tests.support.amazon import REGION
from tests.support.fed import Fed, Polled, identities

# The writer warns when it rewrites files for want of row deletes, or finds nothing to delete: both are meant here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Merge on read is not yet supported:UserWarning"),
    pytest.mark.filterwarnings("ignore:Delete operation did not match any records:UserWarning"),
]

SCHEMA = pa.schema([("id", pa.string()), ("at", pa.timestamp("us", tz="UTC")), ("n", pa.int64())])


def table_of(*numbers: int, **columns) -> pa.Table:
    rows = [{"id": f"k{n % 7}", "at": datetime.fromtimestamp(1_770_000_000 + n, UTC), "n": n} for n in numbers]
    made = pa.Table.from_pylist(rows, SCHEMA)
    for name, values in columns.items():
        made = made.append_column(name, pa.array(values))
    return made


class Lake:
    """A catalog with one table, and whoever writes to it."""

    def __init__(self, uri: str, warehouse: str, **properties: str) -> None:
        self.uri, self.warehouse = uri, warehouse
        self.catalog = SqlCatalog("lake", uri=uri, warehouse=warehouse, **properties)
        self.catalog.create_namespace("rides")
        self.table = self.catalog.create_table("rides.trips", SCHEMA)

    def source(self, cdc: str = "append", **config) -> SourceDef:
        settings = {"table": "trips", "database": "rides", "catalog": "lake"}
        settings |= {"catalog_uri": self.uri, "warehouse": self.warehouse}
        return SourceDef(dataset="Trip", connector=ConnectorDef(type="iceberg", config=settings | config), cdc=cdc)

    def append(self, *numbers: int) -> None:
        self.table.append(table_of(*numbers))

    def delete_rows(self, *numbers: int) -> None:
        """As an engine that merges on read: a file of positions, no data file is rewritten."""
        _commit_row_deletes(self.table, numbers)

    def compact(self, operation: Operation = Operation.REPLACE, rows: pa.Table | None = None) -> None:
        """One new file instead of all there are, as one snapshot: with the rows there are, or others."""
        tasks = list(self.table.scan().plan_files())
        rows = self.table.scan().to_arrow() if rows is None else rows
        with self.table.transaction() as transaction:
            rewriting = _Rewriting(Operation.OVERWRITE, transaction, self.table.io)
            rewriting.called = operation
            for made in _dataframe_to_data_files(self.table.metadata, rows, self.table.io):
                rewriting.append_data_file(made)
            for task in tasks:
                rewriting.delete_data_file(task.file)
            rewriting.commit()

    def snapshots(self) -> list[int]:
        return [entry.snapshot_id for entry in self.table.history()]

    def expire(self, *snapshots: int) -> None:
        self.table.maintenance.expire_snapshots().by_ids(list(snapshots)).commit()


class _Rewriting(_OverwriteFiles):
    """A snapshot that replaces files: the library accounts for an overwrite, and refuses to for a replacement."""

    called: Operation

    def _summary(self, *arguments):
        accounted = super()._summary(*arguments)
        return Summary(self.called, **accounted.additional_properties)


class _DeleteManifest(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


class _RowDeletes(_FastAppendFiles):
    """A snapshot that adds a file of deleted positions, which the library reads and does not write."""

    positions: DataFile

    def _manifests(self):
        spec = self._transaction.table_metadata.spec()
        arguments = (spec, self.schema(), self.new_manifest_output(), self._snapshot_id, self._compression)
        with _DeleteManifest(*arguments) as writer:
            added = {"status": ManifestEntryStatus.ADDED, "snapshot_id": self._snapshot_id}
            nothing = {"sequence_number": None, "file_sequence_number": None}
            writer.add(ManifestEntry.from_args(**added, **nothing, data_file=self.positions))
        return [writer.to_manifest_file(), *super()._manifests()]


def _commit_row_deletes(table, numbers, content=DataFileContent.POSITION_DELETES) -> None:
    found = []
    for task in table.scan().plan_files():
        with table.io.new_input(task.file.file_path).open() as opened:
            rows = pq.read_table(opened)["n"].to_pylist()
        found += [{"file_path": task.file.file_path, "pos": pos} for pos, n in enumerate(rows) if n in numbers]
    path = f"{table.location()}/data/deletes-{len(table.history())}.parquet"
    with table.io.new_output(path).create() as opened:
        pq.write_table(
            pa.Table.from_pylist(found, pa.schema([("file_path", pa.string()), ("pos", pa.int64())])), opened
        )
    deletes = DataFile.from_args(
        content=content,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=len(found),
        file_size_in_bytes=len(table.io.new_input(path)),
        equality_ids=[3] if content is DataFileContent.EQUALITY_DELETES else None,
    )
    deletes.spec_id = 0
    with table.transaction() as transaction:
        producer = _RowDeletes(Operation.DELETE, transaction, table.io)
        producer.positions = deletes
        producer.commit()


@pytest.fixture
def lake(tmp_path) -> Lake:
    made = Lake(f"sqlite:///{tmp_path}/catalog.db", f"file://{tmp_path}/warehouse")
    yield made
    made.catalog.close()


def ns(rows: list[dict]) -> list[int]:
    return [row["n"] for row in rows]


def changes(rows: list[dict]) -> list[tuple[int, bool]]:
    return [(row["n"], bool(row.get("__deleted"))) for row in rows]


def test_the_history_is_walked_from_its_first_snapshot_and_appended_rows_follow(lake):
    polled = Polled(lake.source())
    assert polled.poll() == []
    lake.append(*range(25))
    lake.append(25, 26)
    reader = polled.connect()
    assert ns(polled.poll(reader)) == list(range(27))
    assert polled.batches[0].cursor == str(lake.snapshots()[0])
    lake.append(27)
    assert ns(polled.poll(reader)) == [27]
    assert polled.poll() == []
    reader.close()


@pytest.mark.parametrize("cdc", ["append", "upsert"])
def test_polling_again_from_any_position_gives_the_same_numbers_to_the_same_records(lake, cdc):
    lake.append(*range(7))
    lake.append(*range(7, 10))
    lake.table.delete(In("n", [1, 8]))
    lake.compact()
    lake.delete_rows(2)
    lake.append(*range(10, 15))
    polled = Polled(lake.source(cdc), batch_rows=4)
    polled.poll()
    for taken, rows in itertools.product(range(len(polled.batches)), (3, 1000)):
        again = Polled(lake.source(cdc), rows)
        again.position = {batch.stream: batch.through for batch in polled.batches[:taken]}
        again.poll()
        assert identities(again.batches) == identities(polled.batches[taken:])


def test_rewritten_files_bring_no_row_twice_and_removed_rows_are_told_where_rows_are_appended(lake):
    lake.append(*range(10))
    polled = Polled(lake.source())
    polled.poll()
    lake.table.delete(In("n", [3, 4]))
    assert polled.poll() == []
    (notice,) = polled.notices
    assert str(lake.snapshots()[-1]) in notice
    assert "removed 2 rows" in notice
    lake.compact(Operation.OVERWRITE, table_of(0, 1, 2, 5, 5, 7, 8, 9, 50))
    assert ns(polled.poll()) == [5, 50]
    assert "removed 1 rows" in polled.notices[1]
    assert polled.poll() == []


def test_rows_that_are_gone_take_their_keys_away_where_rows_are_states(lake):
    lake.append(*range(4))
    polled = Polled(lake.source("upsert"))
    assert changes(polled.poll()) == [(n, False) for n in range(4)]
    lake.table.delete(EqualTo("n", 1))
    assert changes(polled.poll()) == [(1, True)]
    lake.table.overwrite(table_of(9), EqualTo("n", 2))
    assert changes(polled.poll()) == [(2, True), (9, False)]
    assert polled.notices == []


def test_row_deletes_are_honoured_before_and_after_they_were_read(lake):
    lake.append(*range(6))
    appended, states = Polled(lake.source()), Polled(lake.source("upsert"))
    appended.poll()
    states.poll()
    lake.delete_rows(2, 4)
    assert ns(lake.table.scan().to_arrow().to_pylist()) == [0, 1, 3, 5]
    assert appended.poll() == []
    assert "removed 2 rows" in appended.notices[0]
    assert changes(states.poll()) == [(2, True), (4, True)]
    lake.delete_rows(2, 5)
    assert changes(states.poll()) == [(5, True)]
    lake.table.delete(EqualTo("n", 0))  # rewrites the file: what its row deletes took away is not taken away again
    assert changes(states.poll()) == [(0, True)]


def test_a_compaction_brings_nothing(lake):
    lake.append(*range(5))
    lake.append(*range(5, 10))
    polled = Polled(lake.source("upsert"))
    polled.poll()
    lake.compact()
    assert lake.table.current_snapshot().summary.operation is Operation.REPLACE
    assert polled.poll() == []
    lake.compact(Operation.OVERWRITE)  # as some engines call it
    assert polled.poll() == []
    lake.append(10)
    assert changes(polled.poll()) == [(10, False)]


def test_equality_deletes_are_an_error_that_says_why(lake):
    lake.append(*range(3))
    polled = Polled(lake.source())
    polled.poll()
    _commit_row_deletes(lake.table, [1], DataFileContent.EQUALITY_DELETES)
    with pytest.raises(SourceError, match="equality deletes"):
        polled.poll()


def test_a_changed_schema_is_honoured_and_rows_from_before_have_null_in_new_columns(lake):
    lake.append(1)
    with lake.table.update_schema() as update:
        update.add_column("city", StringType())
    with lake.table.update_schema() as update:
        update.rename_column("id", "rider")
    lake.table.append(table_of(2, city=["Bonn"]).rename_columns(["rider", "at", "n", "city"]))
    found = Polled(lake.source()).poll()
    assert [(row["rider"], row["n"], row["city"]) for row in found] == [("k1", 1, None), ("k2", 2, "Bonn")]


def test_history_that_has_expired_before_the_first_poll_is_read_as_it_stands_and_said(lake):
    for n in range(4):
        lake.append(n)
    lake.expire(*lake.snapshots()[:2])
    polled = Polled(lake.source())
    assert sorted(ns(polled.poll())) == [0, 1, 2, 3]
    (notice,) = polled.notices
    assert "has expired" in notice


def test_rows_appended_since_a_snapshot_that_expired_are_found_by_their_files(lake):
    lake.append(0, 1)
    polled = Polled(lake.source(), batch_rows=2)
    polled.poll()
    read = lake.snapshots()[-1]
    for n in range(2, 5):
        lake.append(n, 10 * n)
    lake.expire(*lake.snapshots()[:3])
    assert ns(polled.poll()) == [2, 20, 3, 30, 4, 40]
    (notice,) = polled.notices
    assert str(read) in notice
    assert str(lake.snapshots()[-1]) in notice


def test_files_rewritten_since_a_snapshot_that_expired_stop_appends_and_are_taken_anew_as_states(lake):
    lake.append(0, 1)
    appended, states = Polled(lake.source()), Polled(lake.source("upsert"))
    appended.poll()
    states.poll()
    lake.append(2)
    lake.compact()
    lake.append(3)
    lake.expire(*lake.snapshots()[:3])
    with pytest.raises(SourceError, match="which rows are new cannot be told"):
        appended.poll()
    assert sorted(changes(states.poll())) == [(n, False) for n in range(4)]
    assert "taken anew" in states.notices[0]
    assert states.poll() == []


def test_a_snapshot_that_expires_while_half_of_it_is_read_stops_appends_and_is_taken_anew_as_states(lake):
    lake.append(*range(6))
    found = {}
    for cdc in ("append", "upsert"):
        found[cdc] = Polled(lake.source(cdc), batch_rows=4)
        first = next(found[cdc].connect().poll({}))
        found[cdc].position = {first.stream: first.through}
    lake.compact()
    lake.expire(lake.snapshots()[0])
    with pytest.raises(SourceError, match="which rows are new cannot be told"):
        found["append"].poll()
    assert changes(found["upsert"].poll()) == [(n, False) for n in range(6)]


def test_a_table_that_was_rolled_back_is_compared_with_what_was_read(lake):
    lake.append(0, 1)
    lake.append(2)
    states = Polled(lake.source("upsert"))
    states.poll()
    lake.table.manage_snapshots().rollback_to_snapshot(lake.snapshots()[0]).commit()
    assert changes(states.poll()) == [(2, True)]
    assert "went back" in states.notices[0]
    lake.append(3)
    assert changes(states.poll()) == [(3, False)]


@pytest.mark.parametrize("appends", [1, 2, 4, 5, 7, 8])
def test_a_crash_between_two_partitions_appends_costs_no_record_and_doubles_none(lake, empty_redis_url, appends):
    fed = Fed(empty_redis_url, lake.source())
    lake.append(*range(15))
    lake.append(*range(15, 20))
    fed.run_into_crash(appends)
    lake.table.delete(EqualTo("n", 4))
    lake.append(*range(20, 30))
    fed.run()
    fed.run()
    assert fed.numbers() == list(range(30))
    assert fed.letters() == []


def test_removed_rows_are_tombstones_in_the_log_where_rows_are_states(lake, empty_redis_url):
    fed = Fed(empty_redis_url, lake.source("upsert"))
    lake.append(1, 2)
    fed.run()
    lake.table.delete(EqualTo("n", 1))
    fed.run()
    assert [(row["n"], bool(row["__deleted"])) for row in fed.rows()] == [(1, False), (1, True), (2, False)]


def test_a_crash_and_snapshots_that_expire_meanwhile_cost_no_record(lake, empty_redis_url):
    fed = Fed(empty_redis_url, lake.source())
    lake.append(*range(5))
    fed.run()
    lake.append(*range(5, 10))
    fed.run_into_crash(1)
    lake.append(*range(10, 15))
    lake.append(*range(15, 20))
    lake.expire(*lake.snapshots()[:3])
    fed.run()
    assert fed.numbers() == list(range(20))


def test_a_partition_that_is_a_batch_ahead_misses_none_of_the_rows_that_are_taken_anew(lake, empty_redis_url):
    fed = Fed(empty_redis_url, lake.source("upsert"))
    lake.append(*range(5))
    fed.run()
    lake.append(*range(5, 10))
    fed.run_into_crash(1)
    lake.compact(Operation.OVERWRITE, table_of(*range(100, 107)))
    lake.expire(*lake.snapshots()[:-1])
    fed.run()
    assert [n for n in fed.numbers() if n >= 100] == list(range(100, 107))


def test_a_catalog_configured_for_the_library_is_known_by_its_name_and_its_warehouse_may_be_a_bucket(
    amazon, tmp_path, monkeypatch
):
    amazon.client("s3").create_bucket(Bucket="lake", CreateBucketConfiguration={"LocationConstraint": REGION})
    uri, warehouse = f"sqlite:///{tmp_path}/catalog.db", "s3://lake/warehouse"
    bucket = {"s3.endpoint": amazon.url, "s3.region": REGION}
    configured = {"uri": uri, "warehouse": warehouse, **bucket}
    for name, value in configured.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__LAKE__{name.upper().replace('.', '__')}", value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # it is read when the library is loaded
    lake = Lake(uri, warehouse, **bucket)
    lake.append(1, 2)
    lake.append(3)
    assert ns(Polled(lake.source(catalog_uri="", warehouse="")).poll()) == [1, 2, 3]
    lake.catalog.close()


def test_a_table_or_catalog_that_is_not_there_is_named_and_no_catalog_is_made(lake, tmp_path):
    with pytest.raises(SourceError, match=r"rides\.nothing"):
        Polled(lake.source(table="nothing")).poll()
    with pytest.raises(SourceError, match=r"rides\.trips cannot be read"):
        Polled(lake.source(catalog_uri=f"sqlite:///{tmp_path}/elsewhere.db")).poll()
    with pytest.raises(SourceError, match="cannot be read"):
        Polled(lake.source(catalog_uri="", warehouse="", catalog="not_configured")).poll()


@pytest.mark.parametrize("setting", [{"table": ""}, {"database": ""}, {"catalog": "sqlite:///other.db"}])
def test_a_setting_that_cannot_be_is_refused_when_the_source_is_made(lake, setting):
    with pytest.raises(SourceError, match="iceberg source of Trip"):
        connect(lake.source(**setting), 10, SystemClock())


def test_the_catalogs_address_may_hold_a_password_and_is_not_shown():
    described = IcebergSource(table="t", database="d", catalog_uri="postgresql://u:hidden@db/c")
    assert "hidden" not in repr(described)
    assert described.to_dict()["catalog_uri"]["kind"] == "literal"
    assert set(IcebergSource(table="t").to_dict()) == {"table", "catalog", "database"}
