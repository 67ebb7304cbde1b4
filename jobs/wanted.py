"""Which tasks should run: a pure function of the registry's definitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from featurelib.definitions import DatasetDef, Definitions, PipelineDef, SourceDef, digest, ref
from featurelib.engine.program import needed_by, pipelines_of

Kind = Literal["pipeline", "source", "archive", "monitor"]


class TaskSpec(BaseModel):
    """One task that should run: everything its actor needs."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Kind
    definitions: Definitions
    pipeline: PipelineDef | None = None
    partition: int = 0
    partitions: int = 1
    generation: int = 1
    restarts: int = 0
    source: SourceDef | None = None

    @property
    def digest(self) -> str:
        """Changes whenever the actor must be replaced."""
        return digest(self)


def log_datasets(definitions: Definitions) -> list[DatasetDef]:
    """Datasets that records are appended to: all that no pipeline fills."""
    produced = {pipeline.output_dataset for pipeline in definitions.pipelines}
    return [dataset for dataset in definitions.datasets if dataset.name not in produced]


def wanted_tasks(
    definitions: Definitions,
    workers_of: Callable[[str], int],
    generations_of: Callable[[str], Sequence[int]],
    restarts_of: Callable[[str], int] = lambda _: 0,
    *,
    monitored: bool = False,
) -> dict[str, TaskSpec]:
    """Every task that should run, by actor name.

    Args:
        definitions: what is committed.
        workers_of: how many workers the pipeline of a ref shall have.
        generations_of: which builds of its state they fold into; each has workers of its own.
        restarts_of: how often they were to begin anew.
        monitored: whether a monitor looks at what is served and at what it is like.
    """
    specs = []
    for pipeline in pipelines_of(definitions):
        workers = workers_of(ref(pipeline))
        common = {"partitions": workers, "restarts": restarts_of(ref(pipeline))}
        specs += [
            _pipeline_spec(pipeline, definitions, partition, generation).model_copy(update=common)
            for generation in generations_of(ref(pipeline))
            for partition in range(workers)
        ]
    for source in definitions.sources:
        dataset = definitions.dataset(source.dataset)
        # Nobody reads a webhook: its records come over HTTP.
        if dataset is not None and source.connector.type != "webhook":
            kept = Definitions(datasets=(dataset,))
            specs.append(TaskSpec(name=f"source:{source.dataset}", kind="source", definitions=kept, source=source))
    datasets = log_datasets(definitions)
    if datasets:
        specs.append(TaskSpec(name="archive", kind="archive", definitions=Definitions(datasets=tuple(datasets))))
    if datasets and monitored:
        # It reads the registry itself: no commit replaces it.
        specs.append(TaskSpec(name="monitor", kind="monitor", definitions=Definitions()))
    return {spec.name: spec for spec in specs}


def _pipeline_spec(pipeline: PipelineDef, definitions: Definitions, partition: int, generation: int) -> TaskSpec:
    title = pipeline.name if pipeline.version == 1 else f"{pipeline.name}@{pipeline.version}"
    # Workers of two generations run side by side, and a rollback replaces none of them.
    build = "" if generation == 1 else f"#{generation}"
    return TaskSpec(
        name=f"{title}{build}:{partition}",
        generation=generation,
        kind="pipeline",
        definitions=needed_by(pipeline, definitions),
        pipeline=pipeline,
        partition=partition,
    )
