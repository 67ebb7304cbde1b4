"""What every source connector promises (featurelib/connectors/contract.py), on real outside systems."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurelib.clock import SystemClock
from featurelib.connectors import Mark, Source, SourceBatch, connect
from featurelib.connectors.credentials import resolve
from featurelib.definitions import ConnectorDef, SourceDef
from featurelib.errors import SourceError
from featurelib.secrets import SecretRef

ROWS = 25
BATCH_ROWS = 4


@dataclass
class FilesCase:
    """A folder of files of one format."""

    root: Path
    format: str
    cursor: str = ""

    def connect(self, batch_rows: int = BATCH_ROWS) -> Source:
        connector = ConnectorDef(type="files", config={"path": str(self.root)})
        return connect(SourceDef(dataset="Trip", connector=connector, cursor=self.cursor), batch_rows, SystemClock())

    def add(self, name: str, rows: list[dict]) -> None:
        """Rows to a stream that is new."""
        path = self.root / f"{name}.{self.format}"
        if self.format == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
        else:
            header = ",".join(rows[0]) + "\n" if self.format == "csv" else ""
            path.write_text(header + self._lines(rows))

    def extend(self, name: str, rows: list[dict]) -> None:
        """Rows to a stream that exists."""
        with (self.root / f"{name}.{self.format}").open("a") as opened:
            opened.write(self._lines(rows))

    def damage(self, name: str) -> None:
        """Make a stream unreadable from its middle on."""
        path = self.root / f"{name}.{self.format}"
        path.write_bytes(path.read_bytes()[:20])

    def _lines(self, rows: list[dict]) -> str:
        if self.format == "csv":
            return "".join(",".join(str(value) for value in row.values()) + "\n" for row in rows)
        return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(params=["parquet", "csv", "jsonl"])
def case(request, tmp_path) -> FilesCase:
    return FilesCase(tmp_path, request.param)


@pytest.fixture(params=["csv", "jsonl"])
def growing_case(request, tmp_path) -> FilesCase:
    """Streams that may grow; a Parquet file is written once."""
    return FilesCase(tmp_path, request.param)


def rows(count: int, start: int = 0) -> list[dict]:
    return [{"id": f"k{i % 3}", "n": i} for i in range(start, start + count)]


def records(batches: list[SourceBatch]) -> dict[tuple[str, int], dict]:
    found = {}
    for batch in batches:
        given = batch.records.to_pylist() if isinstance(batch.records, pa.Table) else batch.records
        assert len(given) == len(batch.sequence)
        for sequence, record in zip(batch.sequence.tolist(), given, strict=True):
            assert (batch.stream, sequence) not in found
            found[(batch.stream, sequence)] = {**record, "n": int(record["n"])}
    return found


def position(batches: list[SourceBatch]) -> dict[str, Mark]:
    return {batch.stream: batch.through for batch in batches}


def test_every_record_comes_once_in_bounded_batches_of_one_stream(case):
    case.add("a", rows(ROWS))
    case.add("b", rows(ROWS, 100))
    batches = list(case.connect().poll({}))
    assert all(0 < len(batch.sequence) <= BATCH_ROWS for batch in batches)
    assert [record["n"] for record in records(batches).values()] == [*range(ROWS), *range(100, 100 + ROWS)]


def test_sequences_ascend_over_the_batches_of_a_stream(case):
    case.add("a", rows(ROWS))
    batches = list(case.connect().poll({}))
    sequence = np.concatenate([batch.sequence for batch in batches])
    assert (np.diff(sequence) > 0).all()
    assert [batch.through.sequence for batch in batches] == [batch.sequence[-1] for batch in batches]


def test_a_second_poll_from_the_reached_position_gives_nothing(case):
    case.add("a", rows(ROWS))
    source = case.connect()
    reached = position(list(source.poll({})))
    assert list(source.poll(reached)) == []
    assert list(case.connect().poll(reached)) == []


@pytest.mark.parametrize("batch_rows", [1, 3, 7, 1000])
def test_polling_again_from_any_position_gives_the_same_names_to_the_same_records(case, batch_rows):
    case.add("a", rows(ROWS))
    case.add("b", rows(3, 50))
    source = case.connect()
    batches = list(source.poll({}))
    everything = records(batches)
    for taken in range(len(batches)):
        reached = position(batches[:taken])
        left = {name: row for name, row in everything.items() if name[1] > reached.get(name[0], Mark(0)).sequence}
        assert records(list(source.poll(reached))) == left
        assert records(list(case.connect(batch_rows).poll(reached))) == left


def test_a_new_stream_is_found_by_a_later_poll(case):
    case.add("b", rows(2))
    source = case.connect()
    reached = position(list(source.poll({})))
    case.add("a", rows(2, 10))
    assert [row["n"] for row in records(list(source.poll(reached))).values()] == [10, 11]


def test_records_added_to_a_stream_follow_those_before(growing_case):
    growing_case.add("a", rows(ROWS))
    source = growing_case.connect()
    before = list(source.poll({}))
    growing_case.extend("a", rows(5, ROWS))
    for reader in (source, growing_case.connect()):
        added = records(list(reader.poll(position(before))))
        assert [row["n"] for row in added.values()] == list(range(ROWS, ROWS + 5))
        assert min(name[1] for name in added) == before[-1].through.sequence + 1


def test_a_stream_that_shrank_is_an_error_naming_it_and_other_streams_still_come(case):
    case.add("a", rows(ROWS))
    case.add("b", rows(2, 50))
    source = case.connect()
    reached = position(list(source.poll({})))
    case.damage("a")
    case.add("c", rows(2, 90))
    for reader in (source, case.connect()):
        polled = []
        with pytest.raises(SourceError, match=r"^a\."):  # noqa: PT012
            for batch in reader.poll(reached):
                polled.append(batch)  # noqa: PERF402  # what came before the error counts
        assert [row["n"] for row in records(polled).values()] == [90, 91]


def test_the_cursor_shown_is_the_newest_value_and_drops_no_record(case):
    case.cursor = "n"
    case.add("a", [{"id": "x", "n": n} for n in (5, 30, 7, 200, 9, 11)])
    batches = list(case.connect().poll({}))
    assert [batch.cursor for batch in batches] == ["200", "11"]
    assert len(records(batches)) == 6


def test_a_cursor_of_another_type_or_of_no_column_is_shown_too(tmp_path):
    (tmp_path / "a.csv").write_text("at,n\n2026-01-02T00:00:00Z,1\n2026-01-01T00:00:00Z,2\n")
    (batch,) = FilesCase(tmp_path, "csv", cursor="at").connect().poll({})
    assert batch.cursor == "2026-01-02T00:00:00Z"
    (batch,) = FilesCase(tmp_path, "csv", cursor="nothing").connect().poll({})
    assert batch.cursor == ""


def test_without_a_cursor_column_the_place_in_the_source_is_shown(case):
    case.add("a", rows(2))
    (batch,) = case.connect().poll({})
    assert batch.cursor == f"{batch.stream}:{batch.through.sequence}"


def files(path: Path | str, **config: str) -> Source:
    connector = ConnectorDef(type="files", config={"path": str(path), **config})
    return connect(SourceDef(dataset="Trip", connector=connector), 100, SystemClock())


def test_malformed_json_lines_become_malformed_with_their_line_and_the_rest_comes(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"n":1}\n{"n":\n\n[4]\n{"n":"\xff"}\n{"n":6}\n{"n":1e999}\n')
    (batch,) = files(tmp_path).poll({})
    assert batch.sequence.tolist() == [1, 6]
    assert batch.records == [{"n": 1}, {"n": 6}]
    assert [bad.sequence for bad in batch.malformed] == [2, 4, 5, 7]
    assert batch.malformed[1].text == "[4]"
    assert batch.malformed[1].message == "line 4: not a JSON object"
    assert batch.through == Mark(7)


def test_malformed_csv_lines_become_malformed_with_their_line_and_the_rest_comes(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"id,n\na,1\nb\n\nc,3,4\nd,4\n\xff,5\ne,6\n")
    (batch,) = files(tmp_path).poll({})
    assert batch.records.to_pylist() == [{"id": "a", "n": "1"}, {"id": "d", "n": "4"}, {"id": "e", "n": "6"}]
    assert batch.sequence.tolist() == [2, 6, 8]
    assert [bad.sequence for bad in batch.malformed] == [3, 5, 7]
    assert batch.malformed[0].message == "line 3: expected 2 columns, found 1"
    assert batch.malformed[1].text == "c,3,4"


def test_a_quoted_csv_cell_may_hold_line_ends_and_commas(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'id,n\na,"1\n\n2"\nb,"x, ""y"""\nc\nd,""\ne,\n')
    (batch,) = files(tmp_path).poll({})
    assert batch.records.to_pylist() == [
        {"id": "a", "n": "1\n\n2"},
        {"id": "b", "n": 'x, "y"'},
        {"id": "d", "n": ""},
        {"id": "e", "n": None},
    ]
    assert batch.sequence.tolist() == [2, 5, 7, 8]
    assert [bad.sequence for bad in batch.malformed] == [6]


def test_a_quote_inside_an_unquoted_csv_cell_is_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'id,n\na,5" pipe\nb,2\n')
    (batch,) = files(tmp_path).poll({})
    assert batch.records.to_pylist() == [{"id": "a", "n": '5" pipe'}, {"id": "b", "n": "2"}]


def test_a_quote_that_is_never_closed_costs_one_record(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,n\na,1\nb,"2\nc,3\n')
    source = files(tmp_path)
    (growing,) = source.poll({})
    assert growing.through == Mark(2)  # the quoted cell may still go on
    os.utime(path, (0, 0))
    (settled,) = source.poll({"a.csv": Mark(2)})
    assert settled.records.to_pylist() == [{"id": "c", "n": "3"}]
    assert [bad.sequence for bad in settled.malformed] == [3]


@pytest.mark.parametrize(("name", "whole", "partial"), [("a.csv", "id\na\n", "b"), ("a.jsonl", '{"id":"a"}\n', '{"id')])
def test_an_unfinished_last_line_waits_until_it_is_finished(tmp_path, name, whole, partial):
    path = tmp_path / name
    path.write_text(whole + partial)
    source = files(tmp_path)
    (first,) = source.poll({})
    assert len(first.sequence) == 1
    assert list(source.poll({name: first.through})) == []
    with path.open("a") as opened:
        opened.write("c\n" if name == "a.csv" else '": "bc"}\n')
    (second,) = source.poll({name: first.through})
    given = second.records.to_pylist() if isinstance(second.records, pa.Table) else second.records
    assert given == [{"id": "bc"}]
    assert second.sequence.tolist() == [first.through.sequence + 1]


def test_a_file_left_alone_needs_no_last_line_end(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id\na\nb")
    os.utime(path, (0, 0))
    source = files(tmp_path)
    read = records_ids(source, {})
    assert read == {2: "a", 3: "b"}
    assert list(source.poll({"a.csv": Mark(3)})) == []
    with path.open("a") as opened:
        opened.write("\nc\n")
    assert records_ids(source, {"a.csv": Mark(3)}) == {4: "c"}


def records_ids(source: Source, reached: dict[str, Mark]) -> dict[int, str]:
    return {
        sequence: row["id"]
        for batch in source.poll(reached)
        for sequence, row in zip(batch.sequence.tolist(), batch.records.to_pylist(), strict=True)
    }


def test_a_file_longer_than_a_block_is_read_without_loss_at_the_cuts(tmp_path, monkeypatch):
    monkeypatch.setattr("featurelib.connectors.files._BLOCK_BYTES", 16)
    (tmp_path / "a.csv").write_text("id,n\n" + "".join(f'key{i},"line\n{i}"\n' for i in range(40)))
    batches = list(files(tmp_path).poll({}))
    rows_ = [row for batch in batches for row in batch.records.to_pylist()]
    assert [row["n"] for row in rows_] == [f"line\n{i}" for i in range(40)]
    assert np.concatenate([batch.sequence for batch in batches]).tolist() == list(range(2, 82, 2))


def test_null_text_is_null_where_the_source_says_so(tmp_path):
    (tmp_path / "a.csv").write_text("id,n\na,NA\nb,\n")
    (batch,) = files(tmp_path, null="NA").poll({})
    assert batch.records["n"].to_pylist() == [None, None]
    (batch,) = files(tmp_path).poll({})
    assert batch.records["n"].to_pylist() == ["NA", None]


def test_a_glob_names_streams_below_its_fixed_part_in_the_order_of_names(tmp_path):
    for name in ("2026/b.csv", "2026/a.csv", "2025/z.csv", "2026/c.txt", "2026/.hidden.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("id\nx\n")
    streams = [batch.stream for batch in files(tmp_path / "20*" / "*.csv").poll({})]
    assert streams == ["2025/z.csv", "2026/a.csv", "2026/b.csv"]
    assert [batch.stream for batch in files(tmp_path).poll({})] == streams


@pytest.mark.parametrize("ending", ["part", "partial", "tmp", "TEMP", "inprogress"])
def test_a_file_that_is_still_being_written_is_read_under_its_last_name_alone(tmp_path, ending):
    source = files(tmp_path, format="jsonl")
    written = tmp_path / f"a.{ending}"
    written.write_text('{"id": "x"}\n')
    assert list(source.poll({})) == []
    written.rename(tmp_path / "a.jsonl")
    assert [batch.stream for batch in source.poll({})] == ["a.jsonl"]


def test_a_file_read_to_its_end_is_not_opened_again_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("id\nx\n")
    source = files(tmp_path)
    assert len(list(source.poll({}))) == 1
    opened = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args: opened.append(self) or real(self, *args))
    assert list(source.poll({"a.csv": Mark(2)})) == []
    assert opened == []
    assert records_ids(source, {}) == {2: "x"}
    os.truncate(path, 4)
    with pytest.raises(SourceError):
        list(source.poll({"a.csv": Mark(2)}))


def test_one_file_may_be_named_and_its_format_given(tmp_path):
    (tmp_path / "data.txt").write_text("id\nx\n")
    (batch,) = files(tmp_path / "data.txt", format="csv").poll({})
    assert batch.stream == "data.txt"
    with pytest.raises(SourceError, match="name its format"):
        list(files(tmp_path / "data.txt").poll({}))


def test_a_path_that_does_not_exist_is_a_source_error_naming_it(tmp_path):
    with pytest.raises(SourceError, match="nowhere"):
        list(files(tmp_path / "nowhere").poll({}))


def test_an_unknown_connector_type_is_named():
    source = SourceDef(dataset="Trip", connector=ConnectorDef(type="carrier_pigeon", config={}))
    with pytest.raises(SourceError, match="carrier_pigeon"):
        connect(source, 10, SystemClock())


@pytest.mark.parametrize(("variable", "is_own"), [("THYME_ORDERS_PASSWORD", True), ("ORDERS_PASSWORD", False)])
def test_a_variable_that_the_platform_does_not_pass_on_is_said_to_need_another_name(variable, is_own):
    with pytest.raises(SourceError, match=f"{variable}.*has not set") as caught:
        resolve(SecretRef(kind="env", value=variable), "postgres source of Order: password")
    assert ("choose another name" in str(caught.value)) is is_own


@pytest.mark.parametrize("variable", ["THYME_SECRETS__KEY", "THYME_REGISTRY__URL", "THYME_SNOWFLAKE__WORKSPACE"])
def test_a_setting_of_the_platform_is_given_to_no_connector(variable, monkeypatch):
    monkeypatch.setenv(variable, "5ecret")
    with pytest.raises(SourceError, match=f"{variable}.*a setting of the platform") as caught:
        resolve(SecretRef(kind="env", value=variable), "postgres source of Order: password")
    assert "5ecret" not in str(caught.value)
