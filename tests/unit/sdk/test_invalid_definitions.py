"""Every mistake is reported with its code at the user's own line; marks in the text say which and where."""

import json

import pytest

from featurelib.compile import compile_module, validate
from featurelib.definitions import Commit, Definitions
from featurelib.errors import DefinitionError
from tests.support.modules import (
    EVENT,
    FEATURES,
    HEAD,
    RATE,
    STATS,
    VALID,
    expected_mistakes,
    pipeline_module,
    write_module,
)

DATASETS = {
    "no key": """
@dataset()  #! key_count
class A:
    x: int = field()
    at: datetime = field(timestamp=True)
""",
    "two keys": """
@dataset()  #! key_count
class A:
    x: int = field(key=True)
    y: int = field(key=True)
    at: datetime = field(timestamp=True)
""",
    "no timestamp": """
@dataset()  #! timestamp_count
class A:
    x: int = field(key=True)
""",
    "neither": """
@dataset()  #! key_count, timestamp_count
class A:
    x: int = field()
""",
    "optional key": """
@dataset()
class A:
    x: Optional[int] = field(key=True)  #! optional_key
    at: datetime = field(timestamp=True)
""",
    "float key": """
@dataset()
class A:
    x: float = field(key=True)  #! key_type
    at: datetime = field(timestamp=True)
""",
    "timestamp of another type": """
@dataset()
class A:
    x: int = field(key=True)
    at: str = field(timestamp=True)  #! timestamp_type
""",
    "unknown type": """
@dataset()
class A:
    x: int = field(key=True)
    y: complex = field()  #! unknown_type
    z: dict[str, int] = field()  #! unknown_type
    at: datetime = field(timestamp=True)
""",
    "list column nobody fills": """
@dataset()
class A:
    x: int = field(key=True)
    y: list[int] = field()  #! unsupported_type
    at: datetime = field(timestamp=True)
""",
    "no annotation": """
@dataset()
class A:
    x: int = field(key=True)
    y = field()  #! missing_annotation
    at: datetime = field(timestamp=True)
""",
    "bad retention": """
@dataset(retention="1mo")  #! invalid_duration
class A:
    x: int = field(key=True)
    at: datetime = field(timestamp=True)
""",
    "version zero": """
@dataset(version=0)  #! invalid_value
class A:
    x: int = field(key=True)
    at: datetime = field(timestamp=True)
""",
    "wrong metadata": """
@dataset(owner=7)  #! invalid_value
class A:
    x: int = field(key=True)
    at: datetime = field(timestamp=True)
""",
    "default value": """
@dataset()  #! invalid_value
class A:
    x: int = field(key=True)
    y: int = 5
    at: datetime = field(timestamp=True)
""",
    "same name twice": """
@dataset()
class A:
    x: int = field(key=True)
    at: datetime = field(timestamp=True)
B = A
@dataset()  #! duplicate_name
class A:
    x: int = field(key=True)
    at: datetime = field(timestamp=True)
""",
    "expectation of an unknown column": """
@dataset()
class A:
    x: int = field(key=True)
    at: datetime = field(timestamp=True)
    @expectations  #! unknown_column
    def rules(cls):
        return [expect_column_values_to_not_be_null(column="z")]
""",
    "bounds on text": """
@dataset()
class A:
    x: str = field(key=True)
    at: datetime = field(timestamp=True)
    @expectations  #! type_mismatch
    def rules(cls):
        return [expect_column_values_to_be_between(column="x", min_value=0)]
""",
    "expectations that raise": """
@dataset()
class A:
    x: str = field(key=True)
    at: datetime = field(timestamp=True)
    @expectations
    def rules(cls):
        return [nonsense]  #! expectations_body
""",
    "share above one": """
@dataset()
class A:
    x: str = field(key=True)
    at: datetime = field(timestamp=True)
    @expectations
    def rules(cls):
        return [expect_column_values_to_not_be_null("x", mostly=99)]  #! invalid_value
""",
    "expectations outside a dataset": """
class A:
    @expectations  #! orphan_expectations
    def rules(cls):
        return []
""",
}

SOURCES = {
    "duration with two letters": f"""
@source(FileSource(path="a.csv"), every="5min")  #! invalid_duration
{EVENT.strip()}
""",
    "lateness with a sign": f"""
@source(FileSource(path="a.csv"), max_lateness="-1d")  #! invalid_duration
{EVENT.strip()}
""",
    "unknown cdc": f"""
@source(FileSource(path="a.csv"), cdc="merge")  #! invalid_cdc
{EVENT.strip()}
""",
    "cursor on a stream": f"""
@source(KafkaSource(topic="t"), cursor="at")  #! cursor_on_stream, unsupported_connector
{EVENT.strip()}
""",
    "no connector": f"""
@source("kafka://t")  #! invalid_connector
{EVENT.strip()}
""",
    "connector nobody can read": f"""
@source(BigQuerySource(dataset_id="d", table="t"))  #! unsupported_connector
{EVENT.strip()}
""",
    "missing table": f"""
@source(PostgresSource(database="d"))  #! invalid_connector, unsupported_connector
{EVENT.strip()}
""",
    "unknown file format": f"""
@source(FileSource(path="a", format="xml"))  #! invalid_connector
{EVENT.strip()}
""",
    "debezium from PostgreSQL": f"""
@source(PostgresSource(table="t"), cdc="debezium")  #! invalid_cdc, unsupported_connector
{EVENT.strip()}
""",
    "two sources": f"""
@source(FileSource(path="a.csv"))  #! duplicate_name
@source(FileSource(path="b.csv"))
{EVENT.strip()}
""",
    "source of no dataset": """
@source(FileSource(path="a.csv"))  #! unknown_dataset
class A:
    pass
""",
    "source of a pipeline's output": EVENT
    + """
@source(FileSource(path="a.csv"))
@dataset()  #! source_on_derived
class Out:
    shop: str = field(key=True)
    n: int = field()
    at: datetime = field(timestamp=True)
    @pipeline()
    @inputs(Sale)
    def p(cls, sales):
        return sales.groupby("shop").aggregate(n=Count())
""",
}

PIPELINES = {
    "body that raises": """
        rows = sales
        return rows.frobnicate()  #! pipeline_body
    """,
    "window of an unknown unit": """
        return sales.groupby("shop").aggregate(
            total=Sum(of="amount", window="1mo"),  #! pipeline_body
        )
    """,
    "unknown column": """
        return sales.groupby("shop").aggregate(
            total=Sum(of="amout", window="1d"),  #! unknown_column
        )
    """,
    "sum of text": """
        return sales.groupby("shop").aggregate(
            total=Sum(of="note"),  #! aggregate_type
        )
    """,
    "max of a flag": """
        return sales.groupby("shop").aggregate(
            total=Max(of="paid"),  #! aggregate_type
        )
    """,
    "sum of nothing": """
        return sales.groupby("shop").aggregate(
            total=Sum(),  #! missing_column
        )
    """,
    "aggregate of no output column": """
        return sales.groupby("shop").aggregate(
            total=Sum(of="amount"),
            totl=Sum(of="amount"),  #! unknown_output
        )
    """,
    "aggregate into the key": """
        return sales.groupby("shop").aggregate(
            total=Sum(of="amount"),
            shop=Last(of="note"),  #! unknown_output
        )
    """,
    "result of another type": """
        return sales.groupby("shop").aggregate(
            total=Last(of="note"),  #! output_type_mismatch
        )
    """,
    "default of another type": """
        return sales.groupby("shop").aggregate(
            total=Sum(of="amount", default="none"),  #! default_type
        )
    """,
    "unknown group key": """
        return (
            sales
            .groupby("shp")
            .aggregate(total=Sum(of="amount"))  #! unknown_column, group_key_mismatch
        )
    """,
    "group key of another name": """
        return (
            sales
            .groupby("note")
            .aggregate(total=Sum(of="amount"))  #! group_key_mismatch
        )
    """,
    "group key of type float": """
        return (
            sales
            .assign(shop=col("amount"))
            .groupby("shop")
            .aggregate(total=Sum(of="amount"))  #! key_type, key_type_mismatch
        )
    """,
    "filter on a number": """
        return (
            sales
            .filter(col("amount"))  #! type_mismatch
            .groupby("shop").aggregate(total=Sum(of="amount"))
        )
    """,
    "filter on an unknown column": """
        return (
            sales
            .filter(col("payd") == True)  #! unknown_column
            .groupby("shop").aggregate(total=Sum(of="amount"))
        )
    """,
    "comparison of text with a number": """
        return (
            sales
            .filter(col("note") > 3)  #! type_mismatch
            .groupby("shop").aggregate(total=Sum(of="amount"))
        )
    """,
    "arithmetic on text": """
        return (
            sales
            .assign(
                twice=col("note") * 2,  #! type_mismatch
            )
            .groupby("shop").aggregate(total=Sum(of="twice"))
        )
    """,
    "where on an unknown column": """
        return sales.groupby("shop").aggregate(
            total=Sum(of="amount", where=col("payed") == True),  #! unknown_column
        )
    """,
    "lambda as filter": """
        return (
            sales
            .filter(lambda frame: frame)  #! invalid_predicate
            .groupby("shop").aggregate(total=Sum(of="amount"))
        )
    """,
    "no aggregate class": """
        return sales.groupby("shop").aggregate(total="sum")  #! invalid_aggregate
    """,
    "aggregate that is not offered": """
        return sales.groupby("shop").aggregate(
            total=ApproxPercentile(of="amount", window="1d"),  #! unsupported_aggregate
        )
    """,
    "step after the aggregate": """
        grouped = sales.groupby("shop").aggregate(total=Sum(of="amount"))
        return grouped.filter(col("paid") == True)  #! step_after_aggregate
    """,
}

PIPELINE_MODULES = {
    "column nobody fills": pipeline_module(
        """
        return sales.groupby("shop").aggregate(total=Sum(of="amount"))  #! unfilled_field
        """,
        fields="total: float = field()\nmore: int = field()",
    ),
    "nothing returned": HEAD
    + EVENT
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    at: datetime = field(timestamp=True)
    @pipeline()  #! pipeline_body
    @inputs(Sale)
    def p(cls, sales):
        sales.groupby("shop").aggregate()
""",
    "no aggregate": HEAD
    + EVENT
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    at: datetime = field(timestamp=True)
    @pipeline()  #! no_aggregate
    @inputs(Sale)
    def p(cls, sales):
        return sales.filter(col("paid") == True)
""",
    "no group key": HEAD
    + EVENT
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    at: datetime = field(timestamp=True)
    @pipeline()  #! no_group_key
    @inputs(Sale)
    def p(cls, sales):
        return sales.aggregate()
""",
    "no inputs": HEAD
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    at: datetime = field(timestamp=True)
    @pipeline()  #! missing_inputs
    def p(cls, sales):
        return sales
""",
    "input that is no dataset": HEAD
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    at: datetime = field(timestamp=True)
    @pipeline()  #! not_a_dataset
    @inputs(str)
    def p(cls, sales):
        return sales
""",
    "body that takes nothing": HEAD
    + EVENT
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    at: datetime = field(timestamp=True)
    @pipeline()  #! pipeline_signature
    @inputs(Sale)
    def p(cls):
        return None
""",
    "input never used": HEAD
    + EVENT
    + RATE
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    n: int = field()
    at: datetime = field(timestamp=True)
    @pipeline()  #! unused_input
    @inputs(Sale, Rate)
    def p(cls, sales):
        return sales.groupby("shop").aggregate(n=Count())
""",
    "join on a column of another type": pipeline_module(
        """
        return (
            sales
            .join(Rate, on="pieces", fields=["rate"])  #! key_type_mismatch
            .groupby("shop").aggregate(total=Sum(of="rate"))
        )
        """,
        sources=EVENT + RATE,
    ),
    "join that brings an unknown column": pipeline_module(
        """
        return (
            sales
            .join(Rate, on="shop", fields=["rte"])  #! unknown_column
            .groupby("shop").aggregate(total=Sum(of="rte"))
        )
        """,
        sources=EVENT + RATE,
    ),
    "join that overwrites": pipeline_module(
        """
        return (
            sales
            .assign(rate=1.0)
            .join(Rate, on="shop")  #! duplicate_column
            .groupby("shop").aggregate(total=Sum(of="rate"))
        )
        """,
        sources=EVENT + RATE,
    ),
    "join with no dataset": pipeline_module(
        """
        return (
            sales
            .join("Rate", on="shop", fields=["rate"])  #! not_a_dataset
            .groupby("shop").aggregate(total=Sum(of="amount"))
        )
        """
    ),
    "aggregate of an aggregate": HEAD
    + EVENT
    + STATS
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    top: float = field()
    at: datetime = field(timestamp=True)
    @pipeline()  #! chained_pipeline
    @inputs(ShopStats)
    def p(cls, stats):
        return stats.groupby("shop").aggregate(top=Max(of="total_1d"))
""",
    "two pipelines into one dataset": HEAD
    + EVENT
    + """
@dataset()  #! two_producers
class Out:
    shop: str = field(key=True)
    n: int = field()
    at: datetime = field(timestamp=True)
    @pipeline()
    @inputs(Sale)
    def p(cls, sales):
        return sales.groupby("shop").aggregate(n=Count())
    @pipeline()
    @inputs(Sale)
    def q(cls, sales):
        return sales.groupby("shop").aggregate(n=Count(of="note"))
""",
    "pipeline without parentheses": HEAD
    + EVENT
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    at: datetime = field(timestamp=True)
    @pipeline  #! invalid_value
    @inputs(Sale)
    def p(cls, sales):
        return sales.groupby("shop").aggregate()
""",
    "backfill by text": HEAD
    + EVENT
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    at: datetime = field(timestamp=True)
    @pipeline(backfill="2026-01-01")  #! invalid_value
    @inputs(Sale)
    def p(cls, sales):
        return sales.groupby("shop").aggregate()
""",
    "pipeline outside a dataset": HEAD
    + EVENT
    + """
class Out:
    @pipeline()  #! orphan_pipeline
    @inputs(Sale)
    def p(cls, sales):
        return sales.groupby("shop").aggregate(n=Count())
""",
}


def _features(body: str) -> str:
    return HEAD + EVENT + STATS + "\n@featureset\nclass F:\n    shop: str = feature()\n" + body


FEATURESETS = {
    "ref and request": _features("    x: float = feature(ref=ShopStats.total_1d, request=True)  #! ref_and_request\n"),
    "ref to no column": _features("    x: float = feature(ref=ShopStats)  #! invalid_ref\n"),
    "ref of another type": _features("    x: str = feature(ref=ShopStats.total_1d)  #! type_mismatch\n"),
    "default of another type": _features(
        "    x: float = feature(ref=ShopStats.total_1d, default='a')  #! default_type\n"
    ),
    "unknown type": _features("    x: bytes = feature(request=True)  #! unknown_type\n"),
    "no annotation": _features("    x = feature(request=True)  #! missing_annotation\n"),
    "value from nowhere": _features("    x: float = feature()  #! unproduced_feature\n"),
    "id twice": _features(
        "    x: float = feature(request=True, id=4)\n    y: float = feature(request=True, id=4)  #! duplicate_id\n"
    ),
    "entity of another type": HEAD
    + EVENT
    + STATS
    + """
@featureset
class F:
    shop: int = feature()
    x: float = feature(ref=ShopStats.total_1d)  #! key_type_mismatch
""",
    "no entity": HEAD
    + """
@featureset  #! no_entity
class F:
    x: float = feature(request=True)
""",
    "look-up without index": HEAD
    + EVENT.replace("index=True", "")
    + """
@featureset
class F:
    shop: str = feature()
    x: float = feature(ref=Sale.amount)  #! not_indexed
""",
    "unknown input": _features("""\
    x: float = feature()
    @extractor  #! unknown_extractor_input
    @extractor_inputs("total")
    @extractor_outputs("x")
    def f(cls, ts, total):
        return total
"""),
    "unknown output": _features("""\
    x: float = feature(request=True)
    @extractor  #! unknown_extractor_output
    @extractor_inputs("x")
    @extractor_outputs("y")
    def f(cls, ts, x):
        return x
"""),
    "requested output": _features("""\
    x: float = feature(request=True)
    @extractor  #! request_output
    @extractor_outputs("x")
    def f(cls, ts):
        return 1.0
"""),
    "looked up and computed": _features("""\
    x: float = feature(ref=ShopStats.total_1d)  #! two_producers
    @extractor
    @extractor_outputs("x")
    def f(cls, ts):
        return 1.0
"""),
    "wrong parameters": _features("""\
    x: float = feature()
    y: float = feature(request=True)
    @extractor  #! extractor_signature
    @extractor_inputs("y")
    @extractor_outputs("x")
    def f(cls, ts):
        return 1.0
"""),
    "async": _features("""\
    x: float = feature()
    @extractor  #! extractor_signature
    @extractor_outputs("x")
    async def f(cls, ts):
        return 1.0
"""),
    "undefined name": _features("""\
    x: float = feature()
    @extractor  #! unresolved_name
    @extractor_outputs("x")
    def f(cls, ts):
        return 1.0 * undefined_factor
"""),
    "look-up in the body": _features("""\
    x: float = feature()
    @extractor(deps=[ShopStats])  #! lookup_unsupported
    @extractor_outputs("x")
    def f(cls, ts):
        return ShopStats.lookup(ts, shop="a")["total_1d"]
"""),
    "unmarked extractor": _features("""\
    x: float = feature()
    @extractor_outputs("x")  #! missing_extractor
    def f(cls, ts):
        return 1.0
"""),
    "dependency on nothing": _features("""\
    x: float = feature()
    @extractor(deps=["Nothing"])  #! unknown_dep
    @extractor_outputs("x")
    def f(cls, ts):
        return 1.0
"""),
    "circle": _features("""\
    x: float = feature()
    y: float = feature()
    @extractor  #! cycle
    @extractor_inputs("y")
    @extractor_outputs("x")
    def f(cls, ts, y):
        return y
    @extractor
    @extractor_inputs("x")
    @extractor_outputs("y")
    def g(cls, ts, x):
        return x
"""),
    "input of an unknown featureset": _features("""\
    x: float = feature()
    @extractor  #! unknown_extractor_input
    @extractor_inputs("Other.x")
    @extractor_outputs("x")
    def f(cls, ts, x):
        return x
"""),
    "unknown clock": HEAD
    + """
@featureset(online_clock="sundial")  #! invalid_value
class F:
    shop: str = feature()
""",
}

MODULES = {
    "nothing but a syntax mistake": HEAD + "def f(:  #! syntax_error\n    pass\n",
    "a module that raises": HEAD + EVENT + "\nprint(undefined)  #! module_error\n",
    "a wrong keyword": HEAD + "x = field(primary=True)  #! module_error\n",
}


def _cases() -> list[object]:
    tables = [
        *(("dataset", name, HEAD + text) for name, text in DATASETS.items()),
        *(("source", name, HEAD + text) for name, text in SOURCES.items()),
        *(("pipeline", name, pipeline_module(text)) for name, text in PIPELINES.items()),
        *(("pipeline", name, text) for name, text in PIPELINE_MODULES.items()),
        *(("featureset", name, text) for name, text in FEATURESETS.items()),
        *(("module", name, text) for name, text in MODULES.items()),
    ]
    return [pytest.param(text, id=f"{kind}: {name}") for kind, name, text in tables]


@pytest.mark.parametrize("text", _cases())
def test_a_mistake_is_reported_at_its_line_and_nothing_else_is(text, tmp_path):
    path = write_module(tmp_path, text)
    with pytest.raises(DefinitionError) as caught:
        compile_module(path)
    problems = caught.value.problems
    assert sorted((problem.code, problem.line) for problem in problems) == expected_mistakes(text)
    assert {problem.file for problem in problems} == {str(path)}
    assert all(problem.subject and problem.message for problem in problems)


def test_three_mistakes_in_three_classes_come_together_in_the_order_of_the_lines(tmp_path):
    text = (
        VALID.replace('of="amount"', 'of="amout"')
        .replace("pieces: int", "pieces: complex")
        .replace("default=1.0", "default='x'")
    )
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, text))
    problems = caught.value.problems
    assert [problem.code for problem in problems] == ["unknown_type", "unknown_column", "default_type"]
    assert [problem.line for problem in problems] == sorted(problem.line for problem in problems)
    assert str(caught.value).endswith("3 problems; nothing was committed.")


def test_a_misspelt_column_is_answered_with_the_nearest_one(tmp_path):
    text = VALID.replace('of="amount"', 'of="amout"')
    with pytest.raises(DefinitionError, match="Did you mean `amount`"):
        compile_module(write_module(tmp_path, text))


def test_a_column_that_fell_out_is_not_reported_missing_as_well(tmp_path):
    text = VALID.replace("amount: float", "amount: complex")
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, text))
    assert [problem.code for problem in caught.value.problems] == ["unknown_type"]


def _without_inputs(tree):
    tree["pipelines"][0]["input_datasets"] = []


def _without_steps(tree):
    tree["pipelines"][0]["steps"] = []


def _with_two_folds(tree):
    tree["pipelines"][0]["steps"] *= 2


def _without_group_keys(tree):
    tree["pipelines"][0]["steps"][-1]["keys"] = []


def _with_broken_code(tree):
    tree["featuresets"][0]["extractors"][0]["code"]["source"] = "def f(:"


def _with_another_function(tree):
    tree["featuresets"][0]["extractors"][0]["code"]["entry_point"] = "other"


def _with_platform_column(tree):
    tree["datasets"][0]["fields"][2]["name"] = "__time"


def _with_column_twice(tree):
    tree["datasets"][0]["fields"].append(tree["datasets"][0]["fields"][2])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_without_inputs, "missing_inputs"),
        (_without_steps, "no_aggregate"),
        (_with_two_folds, "step_after_aggregate"),
        (_without_group_keys, "no_group_key"),
        (_with_broken_code, "invalid_code"),
        (_with_another_function, "invalid_code"),
        (_with_platform_column, "reserved_name"),
        (_with_column_twice, "duplicate_name"),
    ],
)
def test_what_no_decorator_lets_pass_is_found_in_a_body_written_by_hand(tmp_path, change, code):
    tree = json.loads(compile_module(write_module(tmp_path, VALID)).model_dump_json())
    change(tree)
    problems = validate(Commit.model_validate(tree), Definitions())
    assert [problem.code for problem in problems] == [code]
    assert problems[0].line is not None


def test_a_missing_file_is_a_problem(tmp_path):
    with pytest.raises(DefinitionError) as caught:
        compile_module(tmp_path / "absent.py")
    assert [problem.code for problem in caught.value.problems] == ["module_not_found"]


def test_an_empty_module_is_a_problem(tmp_path):
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, "x = 1\n"))
    assert [problem.code for problem in caught.value.problems] == ["nothing_declared"]


def test_the_base_of_these_tables_has_no_mistake(tmp_path):
    commit = compile_module(write_module(tmp_path, HEAD + EVENT + RATE + STATS + FEATURES))
    assert [definition.name for definition in commit.datasets] == ["Sale", "Rate", "ShopStats"]
