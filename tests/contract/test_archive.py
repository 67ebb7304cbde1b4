"""The archive, the copy into it, and history read over both. Real Delta tables on disk, real Valkey."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import redis
from deltalake import DeltaTable, WriterProperties
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurelib.clock import parse_instant
from featurelib.definitions import DatasetDef, FieldDef, ref
from featurelib.engine.coerce import coerce
from featurelib.engine.keys import key_group
from featurelib.engine.records import ORDER, record_schema
from featurelib.errors import CorruptState, StoreUnavailable
from featurelib.stores import archive as archive_module
from featurelib.stores.archive import Archive
from featurelib.stores.fsync import FsyncFence
from featurelib.stores.history import History
from featurelib.stores.intake import Intake
from featurelib.stores.log import Lateness, Log
from jobs.maintain import ArchiveCopy
from tests.support.clocks import MovedClock

NOW = parse_instant("2026-12-01")

PARTITIONS = 2
TRIP = DatasetDef(
    name="Trip",
    fields=(
        FieldDef(name="rider", type="str", key=True),
        FieldDef(name="at", type="datetime", timestamp=True),
        FieldDef(name="fare", type="float", optional=True),
    ),
)
WIDER = TRIP.model_copy(update={"fields": (*TRIP.fields, FieldDef(name="tip", type="float", optional=True))})
JANUARY = parse_instant("2026-01-01")
DAY_US = 86_400_000_000


@pytest.fixture
def archive(tmp_path) -> Archive:
    return Archive(str(tmp_path / "archive"))


@pytest.fixture
def log(empty_redis_url):
    log = Log(empty_redis_url, MovedClock(NOW))
    log.create(ref(TRIP), PARTITIONS)
    yield log
    log.close()


@pytest.fixture
def fence(empty_redis_url):
    fence = FsyncFence(empty_redis_url)
    yield fence
    fence.close()


def records(first: int, count: int, partition: int = 0, dataset: DatasetDef = TRIP) -> pa.Table:
    """Log records with these offsets; event times a day apart."""
    rows = [
        {
            "rider": f"rider{i % 10}",
            "fare": float(i),
            "__time": JANUARY + i * DAY_US,
            "__accepted_at": i,
            "__partition": partition,
            "__offset": i,
            "__late": i % 3 == 0,
            "__deleted": i % 7 == 0,
        }
        for i in range(first, first + count)
    ]
    for row in rows:
        row.update(at=row["__time"], tip=1.0)
    names = record_schema(dataset).names
    columns = [pa.array([row.get(name) for row in rows]) for name in names]
    return pa.Table.from_arrays(columns, names=names).cast(record_schema(dataset))


def offsets(table: pa.Table, partition: int = 0) -> list[int]:
    return sorted(row["__offset"] for row in table.to_pylist() if row["__partition"] == partition)


def nothing(_row: dict) -> bool:
    return False


def test_what_is_appended_is_read_back_as_it_was(archive):
    written = pa.concat_tables([records(0, 50), records(0, 20, partition=1)])
    assert archive.append(TRIP, written) == 70
    by_offset = [("__partition", "ascending"), ("__offset", "ascending")]
    assert archive.read(TRIP).sort_by(by_offset).equals(written.sort_by(by_offset))
    assert [archive.archived_offset(TRIP, part) for part in range(3)] == [50, 20, 0]


def test_an_archive_that_does_not_exist_yet_is_empty(archive):
    assert archive.archived_offset(TRIP, 0) == 0
    assert archive.read(TRIP).schema == record_schema(TRIP)
    assert len(archive.read(TRIP)) == 0
    assert (archive.compact(TRIP), archive.vacuum(TRIP)) == ((0, 0), 0)


def test_rows_archived_before_are_skipped_also_by_a_writer_that_knows_nothing_of_them(archive, tmp_path):
    archive.append(TRIP, records(0, 10))
    assert archive.append(TRIP, records(0, 10)) == 0
    assert Archive(str(tmp_path / "archive")).append(TRIP, records(5, 10)) == 5
    assert offsets(archive.read(TRIP)) == list(range(15))
    assert archive.archived_offset(TRIP, 0) == 15


def test_a_commit_with_an_older_position_never_moves_it_back(archive):
    archive.append(TRIP, records(0, 100))
    assert archive.append(TRIP, records(0, 3)) == 0
    assert archive.archived_offset(TRIP, 0) == 100


def test_a_gap_is_refused_and_nothing_is_written(archive):
    archive.append(TRIP, records(0, 10))
    with pytest.raises(CorruptState, match=r"Trip@1/0 needs offset 10 next, not 12"):
        archive.append(TRIP, pa.concat_tables([records(12, 5), records(0, 5, partition=1)]))
    assert [archive.archived_offset(TRIP, part) for part in range(2)] == [10, 0]


def test_writers_that_race_archive_every_row_once(tmp_path):
    root, writers = str(tmp_path / "archive"), 3
    barrier = threading.Barrier(writers)

    def append_all() -> int:
        archive = Archive(root)
        barrier.wait()
        return sum(archive.append(TRIP, records(first, 10)) for first in range(0, 60, 10))

    with ThreadPoolExecutor(writers) as pool:
        added = [pool.submit(append_all) for _ in range(writers)]
    assert sum(future.result() for future in added) == 60
    assert offsets(Archive(root).read(TRIP)) == list(range(60))


def test_a_snapshot_does_not_see_later_commits(archive):
    archive.append(TRIP, records(0, 10))
    snapshot = archive.snapshot(TRIP)
    archive.append(TRIP, records(10, 10))
    archive.compact(TRIP)
    assert snapshot.archived_offset(0) == 10
    assert offsets(snapshot.read()) == list(range(10))


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({"keys": ["rider3"]}, lambda row: row["rider"] == "rider3"),
        ({"keys": ["rider3", "rider4"]}, lambda row: row["rider"] in ("rider3", "rider4")),
        ({"keys": ["nobody"]}, nothing),
        ({"keys": []}, nothing),
        ({"groups": range(32)}, lambda row: key_group(row["rider"]) < 32),
        ({"groups": []}, nothing),
        ({"since": JANUARY + 40 * DAY_US}, lambda row: row["__offset"] >= 40),
        ({"until": JANUARY + 40 * DAY_US}, lambda row: row["__offset"] <= 40),
        ({"since": JANUARY + 31 * DAY_US, "until": JANUARY + 31 * DAY_US}, lambda row: row["__offset"] == 31),
        ({"below": {0: 7}}, lambda row: row["__partition"] == 0 and row["__offset"] < 7),
        ({"below": {0: 7, 1: 200}}, lambda row: row["__partition"] == 1 or row["__offset"] < 7),
        ({"below": {}}, nothing),
    ],
)
def test_every_bound_keeps_exactly_its_records(archive, bounds, kept):
    written = pa.concat_tables([records(0, 100), records(0, 100, partition=1)])
    archive.append(TRIP, written)
    name = lambda row: (row["__partition"], row["__offset"])  # noqa: E731
    expected = sorted(name(row) for row in written.to_pylist() if kept(row))
    assert sorted(name(row) for row in archive.read(TRIP, **bounds).to_pylist()) == expected


@pytest.mark.parametrize(
    ("type_name", "values", "text", "found"),
    [
        ("int", [1, -5, 7], "-5", 1),
        ("int", [1, -5, 7], "seven", 0),
        ("bool", [True, False, True], "true", 2),
        ("datetime", [JANUARY, JANUARY + DAY_US, JANUARY], "2026-01-02T00:00:00Z", 1),
        ("str", ["a:b", "a\\b", "a"], "a:b", 1),
    ],
)
def test_keys_of_every_type_are_found_by_their_text(archive, type_name, values, text, found):
    fields = (FieldDef(name="rider", type=type_name, key=True), *TRIP.fields[1:])
    dataset = TRIP.model_copy(update={"fields": fields})
    base = records(0, len(values))
    storage = pa.array(values, pa.int64()) if type_name == "datetime" else pa.array(values)
    table = base.set_column(0, "rider", storage.cast(record_schema(dataset).field("rider").type))
    archive.append(dataset, table)
    assert len(archive.read(dataset, keys=[text])) == found


def test_an_added_optional_column_is_null_in_older_records(archive):
    archive.append(TRIP, records(0, 2))
    assert archive.read(WIDER)["tip"].to_pylist() == [None, None]
    archive.append(WIDER, records(2, 2, dataset=WIDER))
    both = archive.read(WIDER).sort_by("__offset")
    assert both["tip"].to_pylist() == [None, None, 1.0, 1.0]
    assert archive.append(TRIP, records(4, 1)) == 1
    assert offsets(archive.read(TRIP)) == list(range(5))


def test_a_read_of_one_key_decodes_a_small_part_and_a_bounded_read_opens_its_months_only(archive):
    count = 100_000
    base = records(0, 1)
    columns = {name: pa.repeat(base[name][0], count) for name in base.column_names}
    columns["rider"] = pa.array([f"rider{i % 5_000}" for i in range(count)])
    columns["__offset"] = pa.array(range(count))
    columns["__time"] = pa.array(np.linspace(JANUARY, JANUARY + 58 * DAY_US, count).astype(np.int64))
    archive.append(TRIP, pa.table(columns).cast(record_schema(TRIP)))
    stored = DeltaTable(archive.location(TRIP)).to_pyarrow_dataset()
    one_key = ds.field("__key_group") == key_group("rider7")
    groups = [(len(part.row_groups), len(part.subset(one_key).row_groups)) for part in stored.get_fragments()]
    assert len(groups) == 2  # January and February
    assert sum(read for _, read in groups) <= 4 < sum(every for every, _ in groups) - 2
    assert len(list(stored.get_fragments(ds.field("__month") <= 202601))) == 1
    assert len(archive.read(TRIP, keys=["rider7"])) == 20


def test_compaction_changes_files_and_nothing_else(archive):
    for first in range(0, 90, 3):
        archive.append(TRIP, records(first, 3))
    before = archive.read(TRIP).sort_by("__offset")
    done = archive.compact(TRIP)
    assert done.after < done.before / 2
    assert archive.read(TRIP).sort_by("__offset").equals(before)
    assert archive.archived_offset(TRIP, 0) == 90
    assert archive.append(TRIP, records(80, 20)) == 10
    assert archive.vacuum(TRIP, retention_hours=0) > 15
    assert offsets(archive.read(TRIP)) == list(range(100))


def test_compaction_and_appends_do_not_hinder_each_other(archive):
    archive.append(TRIP, records(0, 1))
    appended = threading.Event()

    def compact_meanwhile() -> int:
        compacted = 0
        while not appended.is_set():
            archive.compact(TRIP)
            compacted += 1
        return compacted

    with ThreadPoolExecutor(1) as pool:
        compacting = pool.submit(compact_meanwhile)
        for first in range(1, 61):
            archive.append(TRIP, records(first, 1))
        appended.set()
    assert compacting.result() > 0
    assert offsets(archive.read(TRIP)) == list(range(61))


def test_the_position_survives_checkpoints_of_the_table(archive):
    archive.append(TRIP, records(0, 5))
    archive.append(TRIP, records(0, 5, partition=1))
    table = DeltaTable(archive.location(TRIP))
    table.create_checkpoint()
    table.cleanup_metadata()
    assert [archive.archived_offset(TRIP, part) for part in range(2)] == [5, 5]


def test_a_root_that_cannot_be_written_is_store_unavailable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable):
        Archive(str(tmp_path / "file")).append(TRIP, records(0, 1))


@pytest.mark.parametrize("piece_rows", [60, 250])
@pytest.mark.parametrize("bounds", [{}, {"groups": range(32)}, {"since": JANUARY + 100 * DAY_US, "below": {0: 700}}])
def test_one_piece_is_read_ahead_and_all_of_them_are_what_a_read_gives(archive, monkeypatch, piece_rows, bounds):
    monkeypatch.setattr(archive_module, "WRITER", WriterProperties(max_row_group_size=20))
    for first in range(0, 2_000, 100):
        archive.append(TRIP, records(first, 100))
    monkeypatch.setattr(archive_module, "_PIECE_ROWS", piece_rows)
    parts, making = [], archive_module._dataset_of
    monkeypatch.setattr(archive_module, "_dataset_of", lambda *given: parts.append(given[0]) or making(*given))
    found = []
    for piece in archive.snapshot(TRIP).batches(columns={"__offset"}, **bounds):
        found.append(piece)
        assert len(parts) <= len(found) + 1
    wanted = archive.snapshot(TRIP).read(columns={"__offset"}, **bounds)
    assert sorted(pa.concat_tables(found)["__offset"].to_pylist()) == sorted(wanted["__offset"].to_pylist())
    assert len(found) > 2
    assert max(len(piece) for piece in found) < piece_rows + 20
    assert max(map(len, parts)) > 1  # of several files


def test_whoever_stops_reading_half_way_leaves_nothing_behind(archive, monkeypatch):
    archive.append(TRIP, records(0, 500))
    monkeypatch.setattr(archive_module, "_PIECE_ROWS", 1)
    before = set(threading.enumerate())
    pieces = archive.snapshot(TRIP).batches()
    next(pieces)
    pieces.close()
    assert set(threading.enumerate()) <= before


# The copy from the log.


def send(log: Log, count: int, first: int = 0) -> None:
    """Append records whose fare says which they are."""
    events = [
        {"rider": f"rider{i % 10}", "at": (JANUARY + i) // 1_000_000 + i % 5, "fare": i}
        for i in range(first, first + count)
    ]
    Intake(log, TRIP, PARTITIONS, Lateness(None, 0)).accept(events)


def send_alike(log: Log, count: int, first: int) -> None:
    """Append records of one rider, all in one partition."""
    events = [{"rider": "rider0", "at": JANUARY // 1_000_000 + i, "fare": i} for i in range(first, first + count)]
    Intake(log, TRIP, PARTITIONS, Lateness(None, 0)).accept(events)


def copy_of(log: Log, archive: Archive, fence: FsyncFence, **options) -> ArchiveCopy:
    options = {"clock": MovedClock(NOW), "batch_rows": 1_000, **options}
    return ArchiveCopy([TRIP], log, archive, fence=fence, **options)


def fares(table: pa.Table) -> list[int]:
    return [int(fare) for fare in table["fare"].to_pylist()]


def test_the_copy_takes_all_partitions_in_one_commit_and_reports_its_lag(log, archive, fence):
    send(log, 500)
    copy = copy_of(log, archive, fence, batch_rows=300)
    first = copy.step()
    assert first.commits == 1
    assert first.rows <= 300
    assert first.lag == {"Trip@1": 500 - first.rows}
    while not copy.step().caught_up:
        pass
    assert sorted(fares(archive.read(TRIP))) == list(range(500))
    assert copy.step() == (0, 0, {"Trip@1": 0})


def test_few_records_gather_for_a_while_before_they_are_committed(log, archive, fence):
    clock = MovedClock(NOW)
    copy = copy_of(log, archive, fence, clock=clock, batch_rows=1_000, gather_us=20_000_000)
    send(log, 10)
    assert copy.step() == (10, 1, {"Trip@1": 0})  # the first wait for nothing
    send(log, 10, first=10)
    clock.advance(19_900_000)
    assert copy.step() == (0, 0, {"Trip@1": 10})
    clock.advance(100_000)
    assert copy.step() == (10, 1, {"Trip@1": 0})
    send(log, 249, first=20)
    assert copy.step() == (0, 0, {"Trip@1": 249})
    send(log, 1, first=269)
    assert copy.step() == (250, 1, {"Trip@1": 0})  # a quarter of a batch waits for nothing either
    send(log, 1, first=270)
    assert copy.step(at_once=True) == (1, 1, {"Trip@1": 0})


def test_what_a_busy_partition_has_beyond_its_share_of_a_batch_does_not_gather_again(log, archive, fence):
    clock = MovedClock(NOW)
    send_alike(log, 250, first=0)
    copy = copy_of(log, archive, fence, clock=clock, batch_rows=400, gather_us=20_000_000)
    assert copy.step() == (200, 1, {"Trip@1": 50})
    assert copy.step() == (50, 1, {"Trip@1": 0})
    send_alike(log, 1, first=250)
    assert copy.step() == (0, 0, {"Trip@1": 1})


def test_copies_never_archive_a_record_twice_however_often_they_start_over(log, archive, fence):
    for first in range(0, 200, 50):
        send(log, 50, first)
        copy_of(log, archive, fence).step()
        copy_of(log, archive, fence).step()
    assert sorted(fares(archive.read(TRIP))) == list(range(200))


def test_archived_records_are_those_of_the_log_system_columns_included(log, archive, fence):
    send(log, 50)
    copy_of(log, archive, fence).step()
    logged = pa.concat_tables([log.read(ref(TRIP), part, 0, 100) for part in range(PARTITIONS)])
    order = [(name, "ascending") for name in ORDER]
    assert archive.read(TRIP).sort_by(order).equals(logged.select(record_schema(TRIP).names).sort_by(order))


def test_nothing_is_archived_before_the_server_confirms_its_disk(log, archive):
    class Unconfirmed(FsyncFence):
        answer = "late"

        def __init__(self) -> None:
            pass

        def wait(self, _timeout_ms: int):
            return self.answer

    send(log, 20)
    fence = Unconfirmed()
    copy = copy_of(log, archive, fence)
    assert copy.step() == (0, 0, {"Trip@1": 20})
    fence.answer = "yes"
    assert copy.step().rows == 20
    send(log, 5, 20)
    fence.answer = "late"
    assert copy.step() == (0, 0, {"Trip@1": 5})


def test_without_waitaof_only_what_is_older_than_three_seconds_is_archived(archive, redis_server):
    with redis_server.client() as client:
        client.config_set("appendonly", "no")
    log, fence, clock = Log(redis_server.url, MovedClock(NOW)), FsyncFence(redis_server.url), MovedClock(NOW)
    log.create(ref(TRIP), PARTITIONS)
    copy = copy_of(log, archive, fence, clock=clock)
    send(log, 20)
    assert copy.step().rows == 0
    clock.time += 2_000_000
    send(log, 5, 20)
    assert copy.step().rows == 0
    clock.time += 1_000_000
    assert copy.step().rows == 20
    clock.time += 2_000_000
    assert copy.step().rows == 5
    log.close()
    fence.close()


def test_the_fence_says_yes_only_after_an_fsync_of_what_others_wrote(redis_server):
    with redis_server.client() as client:
        fence = FsyncFence(redis_server.url)
        assert fence.wait(5_000) == "yes"
        client.config_set("appendfsync", "no")
        client.set("written", "by another connection")
        assert fence.wait(200) == "late"
        client.config_set("appendfsync", "always")
        assert fence.wait(5_000) == "yes"
        fence.close()


def test_what_is_archived_is_still_in_the_log_after_the_server_was_killed(archive, redis_server):
    log, fence = Log(redis_server.url, MovedClock(NOW)), FsyncFence(redis_server.url)
    log.create(ref(TRIP), PARTITIONS)
    send(log, 30)
    copy_of(log, archive, fence).step()
    redis_server.kill()
    redis_server.start()
    for part, head in enumerate(log.heads(ref(TRIP), PARTITIONS)):
        assert head.next_offset == archive.archived_offset(TRIP, part) > 0
    log.close()
    fence.close()


def test_a_log_that_lost_archived_records_is_refused_aloud(log, archive, fence, shared_redis):
    send(log, 20)
    copy_of(log, archive, fence).step()
    with shared_redis.client() as client:
        client.flushall()
    log.create(ref(TRIP), PARTITIONS)
    with pytest.raises(CorruptState, match="ends at 0, but"):
        copy_of(log, archive, fence).step()


# History: archive and log as one.


def test_history_is_all_records_in_total_order(log, archive, fence):
    send(log, 60)
    copy_of(log, archive, fence).step()
    send(log, 40, 60)
    table = History(archive, log).read(TRIP, PARTITIONS)
    assert sorted(fares(table)) == list(range(100))
    assert table.schema == record_schema(TRIP)
    assert table.equals(table.sort_by([(name, "ascending") for name in ORDER]))


@pytest.mark.parametrize("archived", [0, 30, 100])
@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({"keys": ["rider3"]}, lambda row: row["rider"] == "rider3"),
        ({"groups": range(20)}, lambda row: key_group(row["rider"]) < 20),
        ({"since": JANUARY + 2_000_000}, lambda row: row["__time"] >= JANUARY + 2_000_000),
        ({"until": JANUARY + 2_000_000}, lambda row: row["__time"] <= JANUARY + 2_000_000),
        ({"cut": {0: 10, 1: 0}}, lambda row: row["__partition"] == 0 and row["__offset"] < 10),
        ({"cut": {1: 35}}, lambda row: row["__partition"] == 1 and row["__offset"] < 35),
    ],
)
def test_bounds_mean_the_same_wherever_a_record_lies(log, archive, fence, archived, bounds, kept):
    send(log, archived)
    copy_of(log, archive, fence).step()
    send(log, 100 - archived, archived)
    history = History(archive, log)
    expected = [row for row in history.read(TRIP, PARTITIONS).to_pylist() if kept(row)]
    assert 0 < len(expected) < 100
    assert history.read(TRIP, PARTITIONS, **bounds).to_pylist() == expected


def test_a_cut_beyond_the_end_of_the_log_gives_what_there_is(log, archive, fence):
    send(log, 20)
    copy_of(log, archive, fence).step()
    send(log, 20, 20)
    table = History(archive, log).read(TRIP, PARTITIONS, cut={0: 1_000, 1: 1_000})
    assert sorted(fares(table)) == list(range(40))


def test_history_reads_again_when_the_log_was_trimmed_under_it(log, archive, fence):
    send(log, 40)
    copy = copy_of(log, archive, fence)

    class MovesMeanwhile(Archive):
        """An archiver that copies and trims right after a reader took its snapshot."""

        moved = 0

        def snapshot(self, dataset):
            taken = super().snapshot(dataset)
            if self.moved < 2:
                self.moved += 1
                send(log, 10, 30 + 10 * self.moved)
                copy.step()
                for part, head in enumerate(log.heads(ref(TRIP), PARTITIONS)):
                    log.trim(ref(TRIP), part, head.next_offset)
            return taken

    reader = MovesMeanwhile(archive._root)
    table = History(reader, log).read(TRIP, PARTITIONS)
    assert reader.moved == 2
    # The cut was taken first, so what came during the read is not in it.
    assert sorted(fares(table)) == list(range(40))
    assert sorted(fares(History(archive, log).read(TRIP, PARTITIONS))) == list(range(60))


def test_readers_see_every_record_once_while_the_archiver_runs(log, archive, fence):
    copy, history = copy_of(log, archive, fence), History(archive, log)
    done, failures = threading.Event(), []

    def archive_and_trim() -> None:
        while not done.is_set():
            try:
                copy.step()
                for part in range(PARTITIONS):
                    log.trim(ref(TRIP), part, archive.archived_offset(TRIP, part))
            except Exception as error:  # noqa: BLE001  # a thread: the test fails with it below
                failures.append(error)
                return

    archiver = threading.Thread(target=archive_and_trim)
    archiver.start()
    try:
        for sent in range(25, 25 * 13, 25):
            send(log, 25, sent - 25)
            assert sorted(fares(history.read(TRIP, PARTITIONS))) == list(range(sent))
    finally:
        done.set()
        archiver.join()
    assert failures == []


def test_a_reader_believes_a_server_that_has_lost_what_it_read(log, archive, empty_redis_url):
    history = History(archive, log)
    send(log, 20)
    with redis.Redis.from_url(empty_redis_url) as client:
        before = {key: client.dump(key) for key in client.keys("*") if client.type(key) != b"string"}
        send(log, 20, 20)
        assert sorted(fares(history.read(TRIP, PARTITIONS))) == list(range(40))
        for key, dumped in before.items():
            client.restore(key, 0, dumped, replace=True)
    assert sorted(fares(history.read(TRIP, PARTITIONS))) == list(range(20))
    send(log, 30, 100)
    assert sorted(fares(history.read(TRIP, PARTITIONS))) == [*range(20), *range(100, 130)]


def test_a_reader_keeps_nothing_that_the_archive_holds_by_its_next_read_and_reads_the_rest_once(
    log, archive, fence, monkeypatch
):
    history, read = History(archive, log), []
    send(log, 20)
    history.read(TRIP, PARTITIONS)
    tail = log.read
    monkeypatch.setattr(log, "read", lambda *asked: read.append(asked) or tail(*asked))
    send(log, 10, 20)
    assert sorted(fares(history.read(TRIP, PARTITIONS))) == list(range(30))
    ends = [head.next_offset for head in log.heads(ref(TRIP), PARTITIONS)]
    # The last that it has and what came since: no more than the ten, and one for each partition.
    assert sum(ends[part] - offset for _, part, offset, _ in read) <= 10 + PARTITIONS
    assert set(history._tails._held) == {(ref(TRIP), part) for part in range(PARTITIONS)}
    copy_of(log, archive, fence).step()
    assert sorted(fares(history.read(TRIP, PARTITIONS))) == list(range(30))
    assert not history._tails._held


def test_a_reader_knows_columns_that_a_dataset_got_since_it_read(log, archive):
    history = History(archive, log)
    send(log, 20)
    assert "tip" not in history.read(TRIP, PARTITIONS).column_names
    table = history.read(WIDER, PARTITIONS)
    assert table["tip"].null_count == len(table) == 20


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(moves=st.lists(st.sampled_from(["send", "read", "copy", "trim", "compact"]), max_size=12))
def test_any_order_of_sending_reading_copying_trimming_and_compacting_gives_the_same_history(
    moves, tmp_path_factory, shared_redis
):
    with shared_redis.client() as client:
        client.flushall()
    log, fence = Log(shared_redis.url, MovedClock(NOW)), FsyncFence(shared_redis.url)
    log.create(ref(TRIP), PARTITIONS)
    archive = Archive(str(tmp_path_factory.mktemp("archive")))
    copy, sent, reader = copy_of(log, archive, fence), 0, History(archive, log)
    for number, move in enumerate([*moves, "read"]):
        if move == "send":
            send(log, 7, sent)
            sent += 7
        elif move == "read":
            # One that has read before keeps what it read of the log.
            cut = {0: number, 1: sent}
            assert reader.read(TRIP, PARTITIONS, cut=cut).equals(History(archive, log).read(TRIP, PARTITIONS, cut=cut))
            assert sorted(fares(reader.read(TRIP, PARTITIONS))) == list(range(sent))
        elif move == "copy":
            copy.step()
        elif move == "compact":
            archive.compact(TRIP)
        else:
            for part in range(PARTITIONS):
                log.trim(ref(TRIP), part, archive.archived_offset(TRIP, part))
    table = History(archive, log).read(TRIP, PARTITIONS)
    log.close()
    fence.close()
    assert sorted(fares(table)) == list(range(sent))
    expected = coerce([{"rider": f"rider{i % 10}", "at": 0, "fare": i} for i in range(sent)], TRIP).table
    assert dict(zip(fares(table), table["rider"].to_pylist(), strict=True)) == dict(
        enumerate(expected["rider"].to_pylist())
    )
