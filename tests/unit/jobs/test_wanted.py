"""Which tasks follow from a registry's definitions."""

from __future__ import annotations

from featurelib.definitions import ConnectorDef, Definitions, SourceDef
from jobs.wanted import TaskSpec, log_datasets, wanted_tasks
from tests.support.worlds import OUT, RAIN, RIDES, pipeline

DEFINITIONS = Definitions(
    datasets=(RIDES, RAIN.model_copy(update={"index": True}), OUT),
    pipelines=(pipeline("rider"),),
    sources=(SourceDef(dataset="Ride", connector=ConnectorDef(type="files", config={"path": "/rides"})),),
)


def wanted(definitions: Definitions = DEFINITIONS, partitions: int = 2, *generations: int) -> dict[str, TaskSpec]:
    return wanted_tasks(definitions, lambda _: partitions, lambda _: generations or (1,))


def test_a_pipeline_and_an_index_have_a_worker_per_partition_and_a_polled_source_a_reader() -> None:
    assert sorted(wanted()) == [
        "Rain_index:0",
        "Rain_index:1",
        "archive",
        "by_rider:0",
        "by_rider:1",
        "source:Ride",
    ]


def test_nothing_runs_when_nothing_is_committed() -> None:
    assert wanted(Definitions()) == {}


def test_a_later_version_runs_beside_the_first_under_its_own_name() -> None:
    second = pipeline("rider").model_copy(update={"version": 2})
    both = DEFINITIONS.model_copy(update={"pipelines": (pipeline("rider"), second)})
    assert {"by_rider:0", "by_rider@2:0"} <= set(wanted(both))


def test_workers_of_two_generations_run_side_by_side_and_a_rollback_replaces_none_of_them() -> None:
    before, both, back = wanted(), wanted(DEFINITIONS, 2, 2, 1), wanted(DEFINITIONS, 2, 1, 2)
    assert {name: both[name].digest for name in before} == {name: spec.digest for name, spec in before.items()}
    added = {name for name in both if name not in before}
    assert added == {"Rain_index#2:0", "Rain_index#2:1", "by_rider#2:0", "by_rider#2:1"}
    assert {name: spec.digest for name, spec in both.items()} == {name: spec.digest for name, spec in back.items()}


def test_a_pipeline_has_workers_of_its_own_number_and_all_of_them_are_replaced_when_it_changes() -> None:
    def workers_of(pipeline: str) -> int:
        return 4 if pipeline == "by_rider@1" else 1

    before, after = wanted(), wanted_tasks(DEFINITIONS, workers_of, lambda _: (1,))
    assert [name for name in after if name.startswith("by_rider:")] == [f"by_rider:{n}" for n in range(4)]
    assert "Rain_index:1" not in after
    assert before["by_rider:0"].digest != after["by_rider:0"].digest
    assert before["source:Ride"].digest == after["source:Ride"].digest


def test_new_words_about_another_dataset_replace_nobody() -> None:
    described = RAIN.model_copy(update={"index": True, "name": "Snow"})
    more = DEFINITIONS.model_copy(update={"datasets": (*DEFINITIONS.datasets, described)})
    before, after = wanted(), wanted(more)
    assert all(before[name].digest == after[name].digest for name in before if name != "archive")


def test_only_datasets_that_no_pipeline_fills_have_a_log() -> None:
    assert [dataset.name for dataset in log_datasets(DEFINITIONS)] == ["Ride", "Rain"]


def test_nobody_reads_a_webhook() -> None:
    hook = SourceDef(dataset="Ride", connector=ConnectorDef(type="webhook", config={}))
    assert "source:Ride" not in wanted(DEFINITIONS.model_copy(update={"sources": (hook,)}))


def test_workers_that_shall_begin_anew_are_all_replaced_and_no_reader() -> None:
    before = wanted()
    after = wanted_tasks(DEFINITIONS, lambda _: 2, lambda _: (1,), lambda name: int(name == "by_rider@1"))
    changed = {name for name in before if before[name].digest != after[name].digest}
    assert changed == {"by_rider:0", "by_rider:1"}


def test_a_monitor_runs_where_it_is_on_and_anything_is_committed_and_no_commit_replaces_it() -> None:
    def with_monitor(definitions: Definitions) -> dict[str, TaskSpec]:
        return wanted_tasks(definitions, lambda _: 2, lambda _: [1], monitored=True)

    assert set(with_monitor(DEFINITIONS)) - set(wanted()) == {"monitor"}
    assert with_monitor(Definitions()) == {}
    smaller = DEFINITIONS.model_copy(update={"sources": ()})
    assert with_monitor(smaller)["monitor"].digest == with_monitor(DEFINITIONS)["monitor"].digest
