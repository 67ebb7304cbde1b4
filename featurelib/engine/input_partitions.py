"""Which key groups of a pipeline read which log partitions of its inputs.

A group has a position in every input partition of its pipeline. Where rows fold under the key of their log, a
partition holds records of some groups only; the others' positions in it mean nothing and hold nobody back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from featurelib.definitions import DatasetDef, ref
from featurelib.engine.keys import KEY_GROUPS, owner_of_group
from featurelib.engine.program import Program

Positions = Mapping[int, Sequence[int]]
"""Per key group its position in every input partition."""


class InputPartition(NamedTuple):
    """One log partition a pipeline reads; its index in the pipeline's list names it in positions."""

    dataset: DatasetDef
    partition: int

    @property
    def address(self) -> tuple[str, int]:
        """``(dataset ref, partition)``."""
        return ref(self.dataset), self.partition


class Reading:
    """Which key groups read which input partitions of a pipeline."""

    def __init__(self, program: Program, partitions: Sequence[InputPartition]) -> None:
        self._partitions = partitions
        self._left = program.left
        self._split = program.keyed_like_its_dataset()
        self._lefts = sum(source.dataset == program.left for source in partitions)

    def reads(self, group: int, index: int) -> bool:
        """Whether the partition can hold records of the group."""
        dataset, partition = self._partitions[index]
        return not (self._split and dataset == self._left) or owner_of_group(group, self._lefts) == partition

    def groups_reading(self, index: int, groups: Iterable[int] = range(KEY_GROUPS)) -> list[int]:
        """Those of ``groups`` that the partition can hold records of."""
        return [group for group in groups if self.reads(group, index)]

    def lowest(self, index: int, positions: Positions) -> int:
        """The lowest position of the groups that read a partition; 0 when none of them does."""
        return min((positions[group][index] for group in self.groups_reading(index, positions)), default=0)
