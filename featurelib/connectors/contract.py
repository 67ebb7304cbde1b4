"""What a connector is: something that can be asked again and again for what comes after a position.

A source is one or more *streams*, each of one of two kinds. A stream is

* **numbered** when what it holds never changes its order (a file, a Kafka partition, the snapshots of an
  Iceberg table): every record has a ``sequence``, for ever, and a batch covers all up to its mark's;
* **named** when more may turn up between what was read before (rows of a table ordered by a cursor, lines of the
  objects in a bucket), or the source's own names are better kept than counted (a Kinesis shard, whose oldest
  records expire): every record has a name, for ever. Names sort, byte by byte, in the order in which the source
  is read, but for ties: what the source does not order itself (rows of one cursor value) comes in any order, over
  batches too. A batch says below which ``floor`` it will never give a name again; ties are all on one side of it.

The promises every connector keeps (tests/contract/test_sources.py):

* polling again from the same mark, in this process or another, gives the same records under the same numbers or
  names; a named stream may give more beside them;
* marks ascend within a stream, over batches too (a batch of a named one may leave the mark where it was: rows that
  others were deleted for); a batch belongs to one stream and is bounded;
* a numbered batch covers every sequence up to ``through``: what it does not bring as a record or as malformed
  is not there and never will be;
* a poll begins at the lowest mark any partition of the log has: one batch may be read again, not more;
* a record it cannot read is brought as malformed, and those after it still come;
* what a source has lost before it was read (a topic's retention, an expired snapshot) is said in ``notices``;
* an outside system that fails raises SourceError, after everything that could be read was given;
* a missing driver, or a setting that cannot be, is a SourceError of the constructor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from featurelib.engine.coerce import RawRecords
from featurelib.engine.records import Mark

Position = Mapping[str, Mark]
"""Per stream, how far it need not be read again. A stream that is absent is read from its start."""

NO_SEQUENCE: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
"""The sequences of a named batch."""


class Malformed(NamedTuple):
    """A piece of input that is not a record; it becomes a dead letter. ``name`` instead of a sequence where named."""

    sequence: int
    text: str
    message: str
    name: str = ""


class SourceBatch(NamedTuple):
    """Consecutive records of one stream.

    Attributes:
        stream: which one.
        sequence: of each record, ascending, where the stream is numbered.
        records: as they came.
        through: how far the stream is read with this batch.
        malformed: what stood between the records and is none.
        cursor: for people: the newest value of the declared cursor column, or where in the source the batch ends.
        names: of each record, ascending, where the stream is named; else empty.
        floor: no name below it is given from now on, however the source is polled.
        notices: what people should hear of this batch.
    """

    stream: str
    sequence: npt.NDArray[np.int64]
    records: RawRecords
    through: Mark
    malformed: tuple[Malformed, ...] = ()
    cursor: str = ""
    names: Sequence[str] = ()
    floor: str = ""
    notices: tuple[str, ...] = ()


class Source(Protocol):
    """An outside system that gives records."""

    def poll(self, position: Position) -> Iterator[SourceBatch]:
        """Everything after ``position`` that is there now; ends when there is no more.

        A source that pushes its records (Kafka, Kinesis) may wait for the first one, for at most half a second.

        Raises:
            SourceError: the system could not be read, or holds less than ``position`` says was read.
        """
        ...

    def close(self) -> None:
        """Give connections back. The source is not polled again."""
        ...
