"""What a caller asks, and what is handed over of every answer so that a query run can be written and read again.

Light on purpose: the process that writes query runs imports it, and nothing of the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from featurelib.clock import Instant

if TYPE_CHECKING:
    import msgspec

    from featurelib.engine.asof import Knowledge

Shape = Literal["features", "batch", "lookup", "offline"]
Kind = Literal["online", "batch", "offline", "lookup"]


class Question(NamedTuple):
    """What a caller asked.

    ``target`` is the featureset, or the dataset of a look-up; ``at`` is ``None`` for "now"; ``entity_ids`` are as
    they were sent. Of an offline read ``instants`` has one per id, and ``row_inputs``, where rows have inputs of their
    own, too. ``nulls``: null is a value of every request feature, as other platforms have it; where it is not Optional
    its default stands in, if it has one. ``features``: only these of the featureset, with what they are made of; none:
    all.
    """

    shape: Shape
    target: str
    entity_ids: tuple[Any, ...]
    entity_type: str | None = None
    at: Instant | None = None
    inputs: Mapping[str, Any] = {}
    instants: tuple[Instant, ...] = ()
    row_inputs: tuple[Mapping[str, Any] | None, ...] = ()
    knowledge: Knowledge = "latest"
    clock: Literal["wall", "event"] | None = None
    nulls: bool = False
    features: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """The query run's kind (decision 25)."""
        if self.shape == "features":
            return "online" if self.at is None else "offline"
        return self.shape

    @property
    def requested_timestamp(self) -> Instant | None:
        """The instant that was asked for; ``None`` for now, and where rows differ in theirs (decision 25)."""
        return self.instants[0] if len(set(self.instants)) == 1 else self.at

    def recorded(self) -> dict[str, Any]:
        """JSON that :meth:`from_recorded` reads back, together with the ids the run itself holds."""
        # The run's ids are key texts, which read as the same keys; kept twice only where they would not.
        ids = self.entity_ids if any(map(_is_not_its_text, self.entity_ids)) else None
        stored = {**self._asdict(), "entity_ids": ids, "inputs": dict(self.inputs)}
        for rare in ("nulls", "features"):
            if not stored[rare]:
                del stored[rare]
        return stored

    @classmethod
    def from_recorded(cls, stored: Mapping[str, Any], entity_ids: Sequence[str]) -> Question:
        """The question a query run was recorded with; ``entity_ids`` are the run's."""
        ids = entity_ids if stored["entity_ids"] is None else stored["entity_ids"]
        rows = {name: tuple(stored.get(name, ())) for name in ("instants", "row_inputs", "features")}
        return cls(**{**stored, **rows, "entity_ids": tuple(ids)})


def _is_not_its_text(given: object) -> bool:
    return isinstance(given, list | tuple | float) or (isinstance(given, str) and given.startswith("["))


Applied = tuple[int, ...] | None
"""Per input partition of a pipeline where a row stops to reflect it; ``None``: nothing of the key was applied yet."""


class Seen(NamedTuple):
    """What an answer was read from, exactly enough to read the very same again.

    Attributes:
        version: registry version of the definitions.
        read_at: the instant R; ``None`` where rows differ in theirs.
        clock: whose R was: ``wall``, ``event`` or ``request``.
        pipelines: what the views read, ``Name@version``, in order.
        applied: of every view's row of every entity, in that order; filled as rows are read.
        looked_up: the rows extractors looked up: dataset, key, instant, and where the row stops. Filled likewise.
        ends: per dataset where the reading of its log stopped, for whatever was read of the past. Filled likewise.
    """

    version: int
    read_at: Instant | None
    clock: str
    pipelines: tuple[str, ...]
    applied: list[Applied]
    looked_up: list[tuple[str, str, Instant, Applied]]
    ends: dict[str, tuple[int, ...]]

    def at(self, instant: Instant) -> Seen:
        """The same rows, read at another instant."""
        version, _, clock, pipelines, applied, looked_up, ends = self
        return Seen(version, instant, clock, pipelines, applied, looked_up, ends)


class Entry(NamedTuple):
    """A query run on its way from the request path to whoever writes it.

    ``question`` is ``None`` where it is too large to keep; ``values`` are of the features, a value each or a column
    each, in the engine's form, or the same as MessagePack: they are digested and go no further.
    """

    id: str
    kind: Kind
    target: str
    question: Question | None
    entity_ids: tuple[str, ...]
    entity_count: int
    hit_count: int
    requested_timestamp: Instant | None
    latency_ms: int
    api_key_fingerprint: str | None
    correlation_id: str | None
    error: str | None
    created_at: Instant
    definition: str | None
    seen: Seen | None
    values: Sequence[Any] | msgspec.Raw | None
