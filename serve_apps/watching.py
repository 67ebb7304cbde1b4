"""What a read tells beside its answer, for whoever has to report on it: which keys were known, and what it took."""

from __future__ import annotations

import time
from collections.abc import Sequence

from featurelib.clock import Instant
from featurelib.engine.extractor import Row, Wanted
from featurelib.stores.online_reader import Lookup
from featurelib.stores.questions import Seen
from serve_apps.reading import Moment, Reader


class Watch:
    """Filled by one read.

    Args:
        now: the server's clock as its request read it, where several reads answer one request.

    Attributes:
        lookups: the views' rows that were read, in order: all views of the first entity, then those of the next.
        known: of each, whether its key had a record by then.
        moment: the instant R; ``None`` before anything was read.
        extract_s: seconds spent in extractors.
    """

    __slots__ = ("extract_s", "known", "lookups", "moment", "now")

    def __init__(self, now: Instant | None = None) -> None:
        self.now = now
        self.lookups: list[Lookup] = []
        self.known: list[bool] = []
        self.moment: Moment | None = None
        self.extract_s = 0.0

    def ran(self, started: float) -> None:
        """Extractors ran since ``started``, of ``time.perf_counter``."""
        self.extract_s += time.perf_counter() - started


class Watched:
    """A reader that notes in a watch what it reads.

    Args:
        reader: who reads.
        watch: what is filled.
    """

    def __init__(self, reader: Reader, watch: Watch) -> None:
        self._reader = reader
        self._watch = watch
        watch.moment = reader.moment

    @property
    def moment(self) -> Moment:
        """The instant R."""
        return self._reader.moment

    @property
    def seen(self) -> Seen:
        """What has been read so far."""
        return self._reader.seen

    async def rows(self, lookups: Sequence[Lookup]) -> list[Row]:
        """The views' rows."""
        rows = await self._reader.rows(lookups)
        self._watch.lookups += lookups
        self._watch.known += [row is not None for row in rows]
        return rows

    async def looked_up(self, wanted: Sequence[Wanted], lookups: Sequence[Lookup]) -> list[Row]:
        """The rows extractors look up."""
        return await self._reader.looked_up(wanted, lookups)
