"""What the state of a commit's pipelines will take: in the online store, and in the memory of their workers."""

from __future__ import annotations

from typing import NamedTuple

from featurelib.definitions import Commit, Definitions, PipelineDef, ref
from featurelib.engine.program import Program, pipelines_of
from featurelib.engine.sizing import Held, Load, StateSize, held_rows, state_size


class Forecast(NamedTuple):
    """A pipeline's state in the online store, and the rows that it keeps in its workers' memory."""

    state: StateSize
    held: list[Held]


def forecasts(commit: Commit, world: Definitions, load: Load) -> list[Forecast]:
    """Lay out a key of each pipeline of the commit, those behind its indexed datasets included.

    Args:
        commit: whose pipelines.
        world: what will be committed: the commit laid over what is.
        load: what is assumed of the data.
    """
    brought = _brought(commit, world)
    programs = (Program.compile(pipeline, world) for pipeline in brought)
    return [Forecast(state_size(program, load, len(brought) - 1), held_rows(program, load)) for program in programs]


def _brought(commit: Commit, world: Definitions) -> list[PipelineDef]:
    declared = {ref(pipeline) for pipeline in world.pipelines}
    sent, datasets = {ref(pipeline) for pipeline in commit.pipelines}, {dataset.name for dataset in commit.datasets}
    return [
        each
        for each in pipelines_of(world)
        if (ref(each) in sent if ref(each) in declared else each.output_dataset in datasets)
    ]
