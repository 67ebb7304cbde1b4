"""How a plan is shown: what a commit would do, what it would break, what it would take, and what to look at again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from featurelib.clock import format_duration
from featurelib.definitions import Commit, DatasetDef, Definitions, SourceDef, ref
from featurelib.engine.forecast import Forecast
from featurelib.engine.sizing import Load
from featurelib.plan import Changes, Considered, Step
from featurelib.secrets import SecretRef
from featurelib.validation import merged
from serve_apps.shapes import shown_setting

_MB = 1_000_000
_OWN_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})
_ADDRESSES = ("host", "brokers", "endpoint_url")


class _Shown(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True)


class PlanBreak(_Shown):
    """One way in which a definition would no longer mean what it does; for any of them the commit is refused."""

    code: str
    """Stable code, `field_removed` for example."""
    subject: str
    """`Class.member`."""
    message: str
    hint: str
    """What to do about it."""
    file: str | None = None
    """The user's file, where the commit names places."""
    line: int | None = None


class HeldRows(_Shown):
    """Rows that a step keeps in the memory of the pipeline's workers."""

    step: str
    bytes_per_row: int


class PredictedState(_Shown):
    """What the state of a pipeline will take in the online store."""

    pipeline: str
    """`Name@version`; the index of a dataset is a pipeline too."""
    fields_per_key: int
    bytes_per_key: int
    total_bytes: int
    bytes_per_distinct: int | None
    """What each distinct value of a key adds; null where no aggregate keeps every one of them."""
    held_rows: list[HeldRows]


class Assumed(_Shown):
    """What the prediction assumes of the data."""

    keys: int
    """Keys of each pipeline."""
    events_per_key: int
    """Rows of each key that reach the aggregate."""
    over: str
    """Time over which a key's rows are spread."""
    distinct: int
    """Distinct values of a key, where each is kept."""


class PlanAnswer(_Shown):
    """Everything a commit would do, in order, and what would come of it; nothing was stored."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "commit_id": "8adc448eeee694faa1c8c21348970745",
                    "no_op": False,
                    "compared_with": None,
                    "accepted": True,
                    "steps": [
                        {"step": "store_definition", "definition": "dataset:Sale@1", "digest": "5e0c…"},
                        {"step": "create_log", "dataset": "Sale@1"},
                    ],
                    "changes": {"added": ["dataset:Sale@1"], "updated": [], "unchanged": []},
                    "breaks": [],
                    "warnings": [],
                    "assumed": {"keys": 10000, "events_per_key": 1000, "over": "30d", "distinct": 100},
                    "pipelines": [],
                    "total_bytes": 0,
                }
            ]
        }
    )

    commit_id: str
    """Names the commit's content: equal content, equal id."""
    no_op: bool
    """Whether all of it is committed already."""
    compared_with: str | None
    """Id of the newest commit there is; null on an empty platform."""
    accepted: bool
    """Whether it would be committed: nothing breaks."""
    steps: list[Step]
    changes: Changes
    breaks: list[PlanBreak]
    """Why it would be refused with 409; empty where `accepted`."""
    warnings: list[str] = Field(default_factory=list)
    """What is allowed and worth a second look."""
    assumed: Assumed
    pipelines: list[PredictedState]
    """The commit's pipelines; empty where something breaks."""
    total_bytes: int
    """State of all of them."""


def answer_of(
    considered: Considered, compared_with: str | None, load: Load, predicted: Sequence[Forecast]
) -> PlanAnswer:
    """A considered commit as it is shown, without warnings."""
    return PlanAnswer(
        commit_id=considered.plan.commit_id,
        no_op=considered.plan.no_op,
        compared_with=compared_with,
        accepted=not considered.breaks,
        steps=list(considered.plan.steps),
        changes=considered.plan.changes,
        breaks=[PlanBreak(**problem._asdict()) for problem in considered.breaks],
        assumed=Assumed(
            keys=load.keys,
            events_per_key=load.events_per_key,
            over=format_duration(load.over_us),
            distinct=load.distinct,
        ),
        pipelines=[_predicted(each) for each in predicted],
        total_bytes=sum(each.state.total_bytes for each in predicted),
    )


def warnings_of(commit: Commit, current: Definitions, answer: PlanAnswer, budget_mb: int | None) -> list[str]:
    """What a commit is allowed to do and its author may not have meant.

    Args:
        commit: what arrives.
        current: what is committed.
        answer: what would come of it.
        budget_mb: memory of the online store, where it is declared.
    """
    return [
        *(text for dataset in commit.datasets for text in _of_dataset(dataset, current)),
        *(text for source in commit.sources for text in _of_source(source)),
        *_of_pipelines(commit, merged(current, commit)),
        *_of_state(answer, budget_mb),
    ]


def _predicted(forecast: Forecast) -> PredictedState:
    held = [HeldRows(**each._asdict()) for each in forecast.held]
    return PredictedState(**forecast.state._asdict(), held_rows=held)


def _of_dataset(dataset: DatasetDef, current: Definitions) -> Iterator[str]:
    before = next((each for each in current.datasets if ref(each) == ref(dataset)), None)
    after = dataset.retention_us
    if before is not None and after is not None and (before.retention_us is None or after < before.retention_us):
        yield f"the retention of {ref(dataset)} becomes shorter: what is older than {format_duration(after)} goes"


def _of_source(source: SourceDef) -> Iterator[str]:
    config = source.connector.config
    for name, value in config.items():
        if not isinstance(value, SecretRef):
            continue
        if value.kind == "literal" and value.value.get_secret_value():
            yield f"the source of {source.dataset} carries its {name} in the definition; Secret(env=…) keeps it out"
        elif value.kind in {"arn", "name"}:
            yield f"the source of {source.dataset} names a secret store for {name}, and none is connected"
    near = [name for name in _ADDRESSES if _is_own(config.get(name))]
    if near:
        text = f"the source of {source.dataset} has {near[0]}={shown_setting(near[0], config[near[0]])}"
        yield f"{text}, which is the machine of whoever reads it, not yours"


def _is_own(setting: object) -> bool:
    if not isinstance(setting, str):
        return False
    first = setting.split(",")[0].strip()
    try:
        host = urlsplit(first if "//" in first else f"//{first}").hostname
    except ValueError:
        return False  # no address; whether it is one is for the connector to say
    return first in _OWN_MACHINE or host in _OWN_MACHINE


def _of_pipelines(commit: Commit, world: Definitions) -> Iterator[str]:
    for pipeline in commit.pipelines:
        inputs = (world.dataset(name) for name in sorted(pipeline.input_datasets))
        for dataset in inputs:
            if dataset is not None and dataset.metadata.deprecated:
                yield f"{ref(pipeline)} reads {dataset.name}, which is deprecated"


def _of_state(answer: PlanAnswer, budget_mb: int | None) -> Iterator[str]:
    for each in answer.pipelines:
        if each.bytes_per_distinct is not None:
            yield f"{each.pipeline} keeps every distinct value of a key, and nothing bounds their number"
    if budget_mb is not None and answer.total_bytes > budget_mb * 1_048_576:
        total = answer.total_bytes / _MB
        yield f"the predicted state of {total:,.0f} MB is more than online.memory_mb={budget_mb} allows in all"
