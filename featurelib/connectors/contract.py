"""What a connector is: something that can be asked again and again for what comes after a position.

The promise every connector keeps (tests/contract/test_sources.py):

* a record is named for ever by its stream and sequence; polling again from the same position, in this
  process or another, gives the same records under the same names;
* within a stream sequences ascend, over batches too; a batch belongs to one stream and is bounded;
* a batch covers every sequence up to ``through``: what it does not bring as a record or as malformed
  is not there and never will be;
* a record it cannot read is brought as malformed, and those after it still come;
* an outside system that fails raises SourceError, after everything that could be read was given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from featurelib.engine.coerce import RawRecords

Position = Mapping[str, int]
"""Per stream, the last sequence that need not be read again. A stream that is absent is read from its start."""


class Malformed(NamedTuple):
    """A piece of input that is not a record; it becomes a dead letter."""

    sequence: int
    text: str
    message: str


class SourceBatch(NamedTuple):
    """Consecutive records of one stream.

    ``sequence`` ascends and is as long as ``records``. ``cursor`` is for people: the newest value of the
    declared cursor column, or where in the source the batch ends.
    """

    stream: str
    sequence: npt.NDArray[np.int64]
    records: RawRecords
    through: int
    malformed: tuple[Malformed, ...] = ()
    cursor: str = ""


class Source(Protocol):
    """An outside system that gives records."""

    def poll(self, position: Position) -> Iterator[SourceBatch]:
        """Everything after ``position`` that is there now; ends when there is no more.

        Raises:
            SourceError: the system could not be read, or holds less than ``position`` says was read.
        """
        ...
