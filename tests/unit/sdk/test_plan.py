"""What a commit does to what is committed: a table of changes and their verdicts."""

import pytest

from featurelib.clock import parse_instant
from featurelib.compile import compile_module
from featurelib.definitions import BackfillDef, Definitions
from featurelib.errors import BreakingChange, DefinitionError
from featurelib.plan import (
    CreateLog,
    RestartSource,
    StartIndex,
    StartJob,
    StartSource,
    StoreDefinition,
    breaking_changes,
    commit_id,
    dated,
    plan,
)
from featurelib.validation import merged
from tests.support.modules import EVENT, FEATURES, HEAD, RATE, STATS, write_module

SOURCE = '\n@source(FileSource(path="/data/rates.csv"), cdc="upsert", every="5s")' + RATE
BASE = HEAD + EVENT + SOURCE + STATS + FEATURES
STEPS = (
    HEAD
    + EVENT
    + RATE
    + """
FACTOR = 2.0

def doubled(frame):
    return frame.with_columns(frame["amount"] * FACTOR)

@dataset(event_id="basket")
class Visit:
    shop: str = field(key=True)
    basket: str = field()
    amount: float = field(min=0)
    at: datetime = field(timestamp=True)

@dataset()
class Busiest:
    shop: str = field(key=True)
    most: float = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Visit)
    def busiest(cls, visits):
        return (
            visits.transform(doubled, output_columns={"amount": float})
            .union(Sale.__name__ and visits.filter(col("amount") > 9))
            .join(Rate, on="shop", within="7d")
            .groupby("shop", "basket")
            .aggregate(
                sold=Sum(of="amount", window=Tumbling("1d")),
            )
            .groupby("shop")
            .aggregate(
                most=Max(of="sold", window="30d"),
            )
        )

@dataset()
class Newest:
    shop: str = field(key=True)
    amount: float = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Visit)
    def newest(cls, visits):
        return visits.groupby("shop").latest()
"""
).replace("Sale.__name__ and ", "")
CHAIN = (
    HEAD
    + EVENT
    + STATS.replace('window="1d"', "window=Lifetime()")
    + """
@dataset()
class Steps:
    shop: str = field(key=True)
    changes: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(ShopStats)
    def counted(cls, stats):
        return stats.groupby("shop").aggregate(changes=Count())
"""
)
NOTHING = Definitions()


@pytest.fixture
def compiled(tmp_path):
    def make(*replacements, base=BASE):
        text = base
        for before, after in replacements:
            assert before in text, before
            text = text.replace(before, after, 1)
        return compile_module(write_module(tmp_path, text))

    return make


def _after(commit):
    return merged(NOTHING, commit)


def test_a_first_commit_stores_then_makes_logs_then_starts_jobs_then_sources(compiled):
    made = plan(NOTHING, compiled())
    assert not made.no_op
    assert [type(step) for step in made.steps] == [
        *[StoreDefinition] * 6,
        *(CreateLog, StartIndex, CreateLog, StartIndex),
        StartJob,
        StartSource,
    ]
    assert made.changes.added == (
        "dataset:Rate@1",
        "dataset:Sale@1",
        "dataset:ShopStats@1",
        "featureset:ShopFeatures",
        "pipeline:by_shop@1",
        "source:Rate",
    )


def test_the_same_content_again_does_nothing_and_has_the_same_id(compiled):
    first = compiled()
    made = plan(_after(first), compiled())
    assert made.no_op
    assert made.steps == ()
    assert made.commit_id == plan(NOTHING, first).commit_id
    assert len(made.changes.unchanged) == 6


def test_what_a_commit_leaves_out_is_neither_deleted_nor_listed(compiled):
    made = plan(_after(compiled()), compiled(base=HEAD + RATE))
    assert made.no_op
    assert made.changes.unchanged == ("dataset:Rate@1",)


def test_a_commit_may_refer_to_what_is_committed_already(compiled):
    everything = compiled()
    only_features = everything.model_copy(update={"datasets": (), "pipelines": (), "sources": ()})
    without = _after(everything).model_copy(update={"featuresets": ()})
    assert plan(without, only_features).changes.added == ("featureset:ShopFeatures",)
    with pytest.raises(DefinitionError):
        plan(NOTHING, only_features)


ALLOWED = [
    pytest.param(
        [("@dataset(index=True)\nclass Sale", '@dataset(index=True, description="x")\nclass Sale')], id="metadata"
    ),
    pytest.param(
        [("factor: float = feature(request=True, default=1.0)", "factor: float = feature(request=True)")], id="default"
    ),
    pytest.param([("return total * factor", "return total * factor * 2")], id="extractor code"),
    pytest.param(
        [("scaled: float = feature()", "scaled: float = feature()\n    extra: int = feature(request=True)")],
        id="feature",
    ),
    pytest.param([('every="5s"', 'every="9s"')], id="poll interval"),
    pytest.param([("pieces: int = field()", "pieces: Optional[int] = field()")], id="column that may be null now"),
    pytest.param(
        [("@dataset(index=True)\nclass Rate", "@dataset(index=True, version=2)\nclass Rate"), ('"upsert"', '"append"')],
        id="cdc with a new version",
    ),
    pytest.param([("version=1", "version=2"), ('window="1d"', 'window="2d"')], id="window with a new version"),
]


@pytest.mark.parametrize("replacements", ALLOWED)
def test_an_addition_passes_on_the_same_version(compiled, replacements):
    made = plan(_after(compiled()), compiled(*replacements))
    assert not made.no_op


BROKEN = [
    pytest.param(
        [
            ("total_1d: float = field()", "total_1d: float = field()\n    n: int = field()"),
            ('window="1d"),', 'window="1d"),\n            n=Count(),'),
        ],
        ["aggregate_added", "index_changed"],
        None,
        id="new aggregate",
    ),
    pytest.param(
        [("note: Optional[str] = field()", "note: Optional[str] = field()\n    more: int = field()")],
        ["index_changed"],
        "@dataset",
        id="column of an indexed dataset",
    ),
    pytest.param([('window="1d"', 'window="2d"')], ["window_changed"], "total_1d=", id="window"),
    pytest.param([('window="1d"', 'window=""')], ["window_changed"], "total_1d=", id="lifetime"),
    pytest.param([('Sum(of="amount"', 'Avg(of="amount"')], ["operator_changed"], "total_1d=", id="operator"),
    pytest.param([('Sum(of="amount"', 'Sum(of="pieces"')], ["operator_changed"], "total_1d=", id="column"),
    pytest.param(
        [('window="1d")', 'window="1d", where=col("paid") == True)')], ["operator_changed"], "total_1d=", id="where"
    ),
    pytest.param(
        [("sales.groupby", 'sales.filter(col("paid") == True).groupby')],
        ["operators_changed"],
        "@pipeline",
        id="filter",
    ),
    pytest.param([("pieces: int = field()\n    ", "")], ["field_removed"], "@dataset", id="removed column"),
    pytest.param([("pieces: int", "pieces: float")], ["field_retyped"], "pieces:", id="retyped column"),
    pytest.param([("note: Optional[str]", "note: str")], ["field_required"], "note:", id="required column"),
    pytest.param(
        [
            (
                "at: datetime = field(timestamp=True)",
                "at: datetime = field()\n    then: datetime = field(timestamp=True)",
            )
        ],
        ["index_changed", "timestamp_changed"],
        None,
        id="timestamp",
    ),
    pytest.param(
        [("@dataset(index=True)\nclass Rate", "@dataset()\nclass Rate")], ["index_removed"], "@dataset", id="index"
    ),
    pytest.param(
        [("@dataset(index=True)\nclass Sale", '@dataset(index=True, retention="1d")\nclass Sale')],
        ["retention_narrowed"],
        "@dataset",
        id="retention",
    ),
    pytest.param([('"upsert"', '"append"')], ["cdc_changed"], "@source", id="cdc"),
    pytest.param(
        [("factor: float = feature(request=True, default=1.0)", "factor: int = feature(request=True, default=1)")],
        ["feature_retyped"],
        "factor:",
        id="retyped feature",
    ),
    pytest.param(
        [
            ("    factor: float = feature(request=True, default=1.0)\n", ""),
            ('"total_1d", "factor"', '"total_1d"'),
            ("ts, total, factor", "ts, total"),
            ("total * factor", "total"),
        ],
        ["feature_removed"],
        "@featureset",
        id="removed feature",
    ),
    pytest.param([("@featureset", '@featureset(entity_type="shop")')], ["rekeyed"], "@featureset", id="entity type"),
    pytest.param(
        [("pieces: int", "pieces: float"), ('window="1d"', 'window="2d"'), ('"upsert"', '"append"')],
        ["cdc_changed", "field_retyped", "window_changed"],
        None,
        id="three at once",
    ),
]


@pytest.mark.parametrize(("replacements", "codes", "line"), BROKEN)
def test_a_changed_meaning_is_refused_with_every_break_at_its_line(compiled, tmp_path, replacements, codes, line):
    current = _after(compiled())
    changed = compiled(*replacements)
    with pytest.raises(BreakingChange) as caught:
        plan(current, changed)
    problems = caught.value.problems
    assert sorted(problem.code for problem in problems) == codes
    assert all(problem.hint for problem in problems)
    if line is not None:
        (problem,) = problems
        assert (tmp_path / "features.py").read_text().splitlines()[problem.line - 1].strip().startswith(line)


STEPS_BROKEN = [
    pytest.param([("FACTOR = 2.0", "FACTOR = 3.0")], "operators_changed", id="constant of a transform"),
    pytest.param([('col("amount") > 9', 'col("amount") > 8')], "operators_changed", id="step inside a union"),
    pytest.param([('within="7d"', 'within="8d"')], "operators_changed", id="age of a joined row"),
    pytest.param([('Tumbling("1d")', 'Tumbling("2d")')], "operators_changed", id="window between steps"),
    pytest.param(
        [('groupby("shop", "basket")', 'groupby("basket", "shop")')], "operators_changed", id="groups between steps"
    ),
    pytest.param([('window="30d"', 'window=Session("1h")')], "window_changed", id="kind of window"),
    pytest.param([('window="30d"', 'window=Continuous("30d", max_rows=9)')], "window_changed", id="cap of a window"),
    pytest.param(
        [(".aggregate(\n                most", '.aggregate(\n                emit="on_event", most')],
        "operators_changed",
        id="emit",
    ),
    pytest.param([(".latest()", ".first()")], "operators_changed", id="latest to first"),
    pytest.param(
        [(".latest()", '.aggregate(amount=Sum(of="amount"))')], "operators_changed", id="latest to an aggregate"
    ),
    pytest.param([('event_id="basket"', "")], "event_id_changed", id="identity of events"),
    pytest.param([('event_id="basket"', 'event_id="basket", upsert=True')], "upsert_changed", id="upsert"),
]


@pytest.mark.parametrize(("replacements", "code"), STEPS_BROKEN)
def test_a_changed_step_breaks_what_it_means(compiled, replacements, code):
    current = _after(compiled(base=STEPS))
    with pytest.raises(BreakingChange) as caught:
        plan(current, compiled(*replacements, base=STEPS))
    (problem,) = caught.value.problems
    assert problem.code == code
    assert problem.line is not None


STEPS_ALLOWED = [
    pytest.param([("FACTOR = 2.0\n", "\n\n\nFACTOR = 2.0\n")], True, id="function that moved in its file"),
    pytest.param([("field(min=0)", "field(min=1)")], False, id="restriction"),
    pytest.param([("class Sale", "class Sale")], True, id="nothing"),
    pytest.param(
        [
            (
                "    @pipeline(version=1)\n    @inputs(Visit)\n    def busiest",
                "    @pipeline(version=2)\n    @inputs(Visit)\n    def busiest",
            ),
            ('Tumbling("1d")', 'Tumbling("2d")'),
        ],
        False,
        id="window between steps with a new version",
    ),
]


@pytest.mark.parametrize(("replacements", "same"), STEPS_ALLOWED)
def test_what_does_not_change_a_meaning_passes(compiled, replacements, same):
    made = plan(_after(compiled(base=STEPS)), compiled(*replacements, base=STEPS))
    assert made.no_op is same


def test_the_first_source_of_a_dataset_that_is_read_cannot_give_versions(compiled):
    fed = (
        "@dataset(index=True)\nclass Rate",
        '@source(FileSource(path="/d/r.csv"), cdc="upsert")\n@dataset(index=True)\nclass Rate',
    )
    current = _after(compiled(base=STEPS))
    with pytest.raises(BreakingChange) as caught:
        plan(current, compiled(fed, base=STEPS))
    assert [problem.code for problem in caught.value.problems] == ["cdc_changed"]
    appended = compiled((fed[0], fed[1].replace(', cdc="upsert"', "")), base=STEPS)
    assert plan(current, appended).changes.added == ("source:Rate",)


def test_the_first_source_of_an_indexed_dataset_cannot_give_versions(compiled):
    alone = f"""{HEAD}
@dataset(index=True)
class Shelf:
    name: str = field(key=True)
    at: datetime = field(timestamp=True)
"""
    fed = ("@dataset(index=True)", '@source(FileSource(path="/d/s.csv"), cdc="upsert")\n@dataset(index=True)')
    current = _after(compiled(base=alone))
    with pytest.raises(BreakingChange) as caught:
        plan(current, compiled(fed, base=alone))
    assert [problem.code for problem in caught.value.problems] == ["cdc_changed"]
    newer = (fed[0], fed[1].replace("index=True", "index=True, version=2"))
    assert "source:Shelf" in plan(current, compiled(newer, base=alone)).changes.added


def test_the_window_of_a_break_is_told_with_all_its_options(compiled):
    current = _after(compiled(base=STEPS))
    shifted = compiled(('window="30d"', 'window=Continuous("30d", offset="1d", max_rows=5)'), base=STEPS)
    with pytest.raises(BreakingChange, match=r"window from 30d to 30d offset 1d max_rows 5"):
        plan(current, shifted)


def test_a_pipeline_over_the_output_of_another_starts_a_job_of_its_own(compiled):
    made = plan(NOTHING, compiled(base=CHAIN))
    jobs = [step.pipeline for step in made.steps if isinstance(step, StartJob)]
    assert jobs == ["by_shop@1", "counted@1"]
    assert [step.dataset for step in made.steps if isinstance(step, CreateLog)] == ["Sale@1"]


def test_a_new_version_of_a_pipeline_that_another_reads_comes_with_a_new_version_of_that(compiled):
    current = _after(compiled(base=CHAIN))
    first = ("    @pipeline(version=1)\n    @inputs(Sale)", "    @pipeline(version=2)\n    @inputs(Sale)")
    second = ("    @pipeline(version=1)\n    @inputs(ShopStats)", "    @pipeline(version=2)\n    @inputs(ShopStats)")
    changed = ('Sum(of="amount"', 'Avg(of="amount"')
    with pytest.raises(DefinitionError) as caught:
        plan(current, compiled(first, changed, base=CHAIN))
    (problem,) = caught.value.problems
    assert problem.code == "pipeline_version_in_use"
    assert "counted@1" in problem.message
    made = plan(current, compiled(first, changed, second, base=CHAIN))
    assert made.changes.added == ("pipeline:by_shop@2", "pipeline:counted@2")


def test_a_committed_pipeline_is_checked_again_when_what_it_reads_changes(compiled):
    current = _after(compiled(base=CHAIN))
    upstream = compiled(
        ("    @pipeline(version=1)\n    @inputs(Sale)", "    @pipeline(version=2)\n    @inputs(Sale)"),
        ("window=Lifetime()", 'window="1d"'),
        base=CHAIN[: CHAIN.index("@dataset()\nclass Steps")],
    )
    with pytest.raises(DefinitionError) as caught:
        plan(current, upstream)
    assert sorted(problem.code for problem in caught.value.problems) == ["pipeline_version_in_use", "unstable_input"]


def test_a_dataset_that_a_committed_pipeline_reads_keeps_its_version(compiled):
    newer = compiled(("@dataset(index=True)\nclass Sale", "@dataset(version=2)\nclass Sale"))
    with pytest.raises(DefinitionError) as caught:
        plan(_after(compiled()), newer)
    assert [problem.code for problem in caught.value.problems] == ["dataset_version_in_use"]


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ("by_shop", "shop_index", "reserved_name"),
    ],
)
def test_what_would_not_be_obeyed_is_refused(compiled, before, after, code):
    with pytest.raises(DefinitionError) as caught:
        plan(NOTHING, compiled((before, after)))
    assert [problem.code for problem in caught.value.problems] == [code]


def test_a_pipeline_without_history_keeps_the_instant_of_its_first_commit(compiled):
    without = ("@pipeline(version=1)", "@pipeline(version=1, backfill=None)")
    first = dated(compiled(without), NOTHING, 1_000)
    assert first.pipelines[0].backfill == BackfillDef(enabled=False, from_us=1_000)
    again = dated(compiled(without), _after(first), 2_000)
    assert again.pipelines == first.pipelines
    assert plan(_after(first), again).no_op
    assert commit_id(dated(compiled(without), NOTHING, 2_000)) == commit_id(first)


def test_where_history_begins_is_part_of_what_a_pipeline_means(compiled):
    since = ("@pipeline(version=1)", "@pipeline(version=1, backfill=Backfill(since=datetime(2026, 1, 1, tzinfo=UTC)))")
    head = ("from datetime import datetime", "from datetime import UTC, datetime\nfrom featurelib import Backfill")
    limited = compiled(since, head)
    assert limited.pipelines[0].backfill.since_us == parse_instant("2026-01-01T00:00:00Z")
    with pytest.raises(BreakingChange) as caught:
        plan(_after(compiled()), limited)
    (problem,) = caught.value.problems
    assert problem.code == "backfill_changed"
    assert "records dated since 2026-01-01T00:00:00Z, and counted all records" in problem.message


def test_a_rekeyed_dataset_and_pipeline_are_both_named(compiled):
    current = _after(compiled())
    changed = compiled(
        ("shop: str = field(key=True)\n    total_1d", "note: str = field(key=True)\n    total_1d"),
        ('groupby("shop")', 'groupby("note")'),
    )
    with pytest.raises(BreakingChange) as caught:
        plan(current, changed)
    assert sorted(problem.code for problem in caught.value.problems) == [
        "field_removed",
        "index_changed",
        "rekeyed",
        "rekeyed",
    ]


def test_a_new_pipeline_version_starts_a_job_of_its_own(compiled):
    made = plan(_after(compiled()), compiled(("version=1", "version=2"), ('window="1d"', 'window="2d"')))
    assert [step for step in made.steps if not isinstance(step, StoreDefinition)] == [
        StartJob(pipeline="by_shop@2", backfill=BackfillDef())
    ]


def test_new_source_settings_restart_the_source_and_new_metadata_does_not(compiled):
    current = _after(compiled())
    faster = plan(current, compiled(('every="5s"', 'every="9s"')))
    assert RestartSource(dataset="Rate") in faster.steps
    described = plan(current, compiled(('every="5s"', 'every="5s", owner="ops"')))
    assert [type(step) for step in described.steps] == [StoreDefinition]


def test_a_committed_featureset_that_would_lose_its_column_is_a_problem(compiled):
    current = _after(compiled())
    renamed = compiled(
        ("@dataset(index=True)\nclass ShopStats", "@dataset(index=True, version=2)\nclass ShopStats"),
        ("version=1", "version=2"),
        ("total_1d: float = field()", "sum_1d: float = field()"),
        ("total_1d=Sum", "sum_1d=Sum"),
        base=HEAD + EVENT + SOURCE + STATS,
    )
    with pytest.raises(DefinitionError) as caught:
        plan(current, renamed)
    assert [(problem.code, problem.subject) for problem in caught.value.problems] == [
        ("unknown_column", "ShopFeatures.total_1d")
    ]


def test_a_definition_is_no_break_of_itself(compiled):
    assert [found for each in compiled().all for found in breaking_changes(each, each)] == []
