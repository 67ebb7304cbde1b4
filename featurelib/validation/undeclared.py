"""Columns of a transform that does not say what it gives.

The stock SDK does not send the columns of a transform. What later steps read and nothing else gives must come
from it; the type of such a column is the first with which those steps make sense. Text is tried first: whatever
the function gives can be stored as that.
"""

from __future__ import annotations

from featurelib.definitions import Definitions, PipelineDef, TransformStep
from featurelib.validation.findings import Finding
from featurelib.validation.pipelines import check_pipeline

_TYPES = ("str", "float", "int", "bool", "datetime")


def completed(pipeline: PipelineDef, world: Definitions) -> PipelineDef:
    """The pipeline, its last transform without columns now with those that later steps need.

    Args:
        pipeline: as it was written.
        world: the definitions it refers to.
    """
    place = _open(pipeline)
    if place is None:
        return pipeline
    before: dict[str, dict[str, str]] = {}
    found = check_pipeline(pipeline, world, lambda at, types: before.update({at: dict(types)}))
    missing = [name for name in dict.fromkeys(map(_missing, found)) if name]
    if not missing:
        return pipeline
    # Declared columns are all that is taken from the function: those it was given may have been overwritten too.
    columns = {**before.get(str(place), {}), **dict.fromkeys(missing, _TYPES[0])}
    for name in missing:
        made = ({**columns, name: kind} for kind in _TYPES)
        columns = min(made, key=lambda each: len(check_pipeline(_with(pipeline, place, each), world)))
    return _with(pipeline, place, columns)


def _open(pipeline: PipelineDef) -> int | None:
    places = [i for i, step in enumerate(pipeline.steps) if isinstance(step, TransformStep) and not step.columns]
    return places[-1] if places else None


def _missing(finding: Finding) -> str:
    return finding.about.rpartition(".")[2] if finding.code == "unknown_column" else ""


def _with(pipeline: PipelineDef, place: int, columns: dict[str, str]) -> PipelineDef:
    step = pipeline.steps[place]
    assert isinstance(step, TransformStep)  # _open() found it
    changed = step.model_copy(update={"columns": tuple(columns.items())})
    steps = (*pipeline.steps[:place], changed, *pipeline.steps[place + 1 :])
    return pipeline.model_copy(update={"steps": steps})
