"""A source fed into a dataset's log, as a job does it, and crashes between two partitions' appends."""

from __future__ import annotations

from featurelib.clock import Clock, SystemClock
from featurelib.connectors import Mark, Source, SourceBatch, connect
from featurelib.definitions import DatasetDef, FieldDef, SourceDef, ref
from featurelib.errors import StoreUnavailable
from featurelib.settings import IngestSettings
from featurelib.stores.log import Log
from jobs.ingest import SourceIngest

PARTITIONS = 3
BATCH_ROWS = 10
TRIP = DatasetDef(
    name="Trip",
    fields=(
        FieldDef(name="id", type="str", key=True),
        FieldDef(name="at", type="datetime", timestamp=True),
        FieldDef(name="n", type="int", optional=True),
    ),
)


class FailsAfter(Log):
    """A log whose connection is lost at one append: nothing of that one, and nothing later, is written."""

    def __init__(self, url: str, appends: int, clock: Clock | None = None) -> None:
        super().__init__(url, clock or SystemClock())
        self._left = appends

    def append(self, *args, **kwargs):
        if self._left == 0:
            raise StoreUnavailable("lost")
        self._left -= 1
        return super().append(*args, **kwargs)


class Fed:
    """One dataset's log, and a source that feeds it."""

    def __init__(self, redis_url: str, source: SourceDef, batch_rows: int = BATCH_ROWS) -> None:
        self.url = redis_url
        self.source = source
        self.batch_rows = batch_rows
        self.events: list[str] = []

    def run(self) -> None:
        """A new process: polls until the source has no more."""
        log = Log(self.url, SystemClock())
        try:
            self._finish(log)
        finally:
            log.close()

    def run_into_crash(self, appends: int) -> None:
        """A process that dies after so many appends to partitions."""
        log = FailsAfter(self.url, appends)
        try:
            self._finish(log)
        except StoreUnavailable:
            return
        finally:
            log.close()
        raise AssertionError("the source ended before the crash")

    def rows(self) -> list[dict]:
        """Everything the log holds, by ``n``."""
        log = Log(self.url, SystemClock())
        tables = [log.read(ref(TRIP), part, 0, 1_000_000) for part in range(PARTITIONS)]
        log.close()
        return sorted((row for table in tables if table for row in table.to_pylist()), key=lambda row: row["n"])

    def numbers(self) -> list[int]:
        return [row["n"] for row in self.rows()]

    def letters(self) -> list[str]:
        log = Log(self.url, SystemClock())
        found = [stored.letter.message for stored in log.dead.newest(ref(TRIP), PARTITIONS)]
        log.close()
        return sorted(found)

    def _finish(self, log: Log) -> None:
        job = SourceIngest(
            self.source,
            TRIP,
            PARTITIONS,
            log,
            report=lambda event: self.events.append(event.message),
            settings=IngestSettings(batch_rows=self.batch_rows),
            clock=SystemClock(),
        )
        try:
            while not job.step().caught_up:
                pass
        finally:
            job.close()


class Polled:
    """What successive polls of a source gave; each goes on from what the one before reached."""

    def __init__(self, source: SourceDef, batch_rows: int = BATCH_ROWS) -> None:
        self.source = source
        self.batch_rows = batch_rows
        self.position: dict[str, Mark] = {}
        self.batches: list[SourceBatch] = []

    def connect(self) -> Source:
        return connect(self.source, self.batch_rows, SystemClock())

    def poll(self, source: Source | None = None) -> list[dict]:
        """The records that are new, by a source of its own unless one is given. Keeps what came before an error."""
        reader = source or self.connect()
        given = []
        try:
            for batch in reader.poll(self.position):
                check(batch, self.position.get(batch.stream), self.batch_rows)
                self.position[batch.stream] = batch.through
                self.batches.append(batch)
                given += rows_of(batch)
        finally:
            if source is None:
                reader.close()
        return given

    @property
    def notices(self) -> list[str]:
        return [notice for batch in self.batches for notice in batch.notices]


def rows_of(batch: SourceBatch) -> list[dict]:
    return list(batch.records) if isinstance(batch.records, list) else batch.records.to_pylist()


def identities(batches: list[SourceBatch]) -> dict[tuple[str, int | str], str]:
    """Every record by its stream and its number or name, and every malformed piece too."""
    found: dict[tuple[str, int | str], str] = {}
    for batch in batches:
        places = list(batch.names) or batch.sequence.tolist()
        for place, row in zip(places, rows_of(batch), strict=True):
            assert (batch.stream, place) not in found
            found[batch.stream, place] = repr(row)
        found |= {(batch.stream, bad.name or bad.sequence): bad.text for bad in batch.malformed}
    return found


def check(batch: SourceBatch, before: Mark | None, batch_rows: int) -> None:
    """The promises that one batch alone can break."""
    places = list(batch.names) or batch.sequence.tolist()
    assert len(places) == len(batch.records) <= batch_rows
    assert places == sorted(set(places))
    assert before is None or batch.through > before
    if batch.names or batch.floor:
        named = [*places, *(bad.name for bad in batch.malformed)]
        assert all(batch.floor <= name <= batch.through.token for name in named)
        assert before is None or all(name > before.token for name in named)
    elif places:
        assert places[-1] <= batch.through.sequence
        assert before is None or places[0] > before.sequence


def trip(n: int) -> dict:
    return {"id": f"k{n % 7}", "at": 1_770_000_000 + n, "n": n}
