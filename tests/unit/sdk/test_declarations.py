"""What decorators build, and which mistakes they refuse where they stand."""

# ruff: noqa: N805  # the platform calls these methods with the class, as the stock syntax has it

from datetime import UTC, datetime
from decimal import Decimal
from typing import Optional

import pytest

import featurelib
from featurelib import (
    Avg,
    Backfill,
    Count,
    Field,
    FileSource,
    KafkaSource,
    LastK,
    Max,
    PostgresSource,
    S3JsonSource,
    Secret,
    SnowflakeSource,
    Sum,
    Tumbling,
    col,
    dataset,
    expect_column_values_to_be_between,
    expectations,
    extractor,
    extractor_inputs,
    extractor_outputs,
    feature,
    featureset,
    field,
    inputs,
    pipeline,
    source,
)
from featurelib.compile import compile_module
from featurelib.declarations import declared_on
from featurelib.definitions import (
    AggregateStep,
    AssignStep,
    DedupStep,
    DropStep,
    ExplodeStep,
    FilterCodeStep,
    FilterStep,
    FirstStep,
    JoinStep,
    LatestStep,
    RenameStep,
    SelectStep,
    TransformStep,
    UnionStep,
)
from featurelib.errors import DeclarationTypeError, DeclarationValueError, DefinitionError


@source(
    FileSource(path="/data/sales", format="csv", null="NA"), cursor="at", every="5s", max_lateness="2h", tags=["raw"]
)
@dataset(index=True, version=3, retention="30d", description="One row per sale.", owner="ops@example.com")
class Sale:
    shop: str = field(key=True)
    amount: Field[float] = field()
    note: Optional[str] = field()  # noqa: UP045  # the stock form
    kind: str | None = field()
    pieces: int
    at: datetime = field(timestamp=True)

    @expectations
    def rules(cls):
        return [expect_column_values_to_be_between("amount", min_value=0, mostly=0.9)]


@dataset(index=True)
class Rate:
    shop: str = field(key=True)
    rate: float = field()
    source: str = field()
    at: datetime = field(timestamp=True)


@dataset(index=True)
class Stats:
    shop: str = field(key=True)
    n: int = field()
    recent: list[str] = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=2, backfill=Backfill(since=datetime(2026, 6, 1, tzinfo=UTC)))
    @inputs(Sale, Rate)
    def by_shop(cls, sales):
        return (
            sales.filter(col("amount") > 0)
            .join(Rate, on="shop")
            .assign(worth=col("amount") * col("rate"), one=1)
            .groupby("shop")
            .aggregate(n=Count(window="1h"), recent=LastK("kind", "7d", 3, dedup=True))
        )


FACTOR = 2.0


def scaled(value):
    return value * FACTOR


@featureset(entity_type="shop", online_clock="event", owner="ml@example.com")
class Features:
    shop: str = feature(id=1)
    n: int = feature(ref=Stats.n, default=0, id=2)
    recent: list[str] = feature(ref=Stats.recent)
    minutes: float = feature(request=True, default=60.0)
    rate: float = feature(description="Per minute.")

    @extractor(deps=[Stats], version=4)
    @extractor_inputs("n", "minutes")
    @extractor_outputs("rate")
    def per_minute(cls, ts, n, minutes):
        return scaled(n) / minutes


def _only(cls, kind):
    return next(each for each in declared_on(cls).definitions if each.kind == kind)


def test_a_dataset_holds_its_columns_in_order_with_their_types():
    columns = [(column.name, column.type, column.optional) for column in _only(Sale, "dataset").fields]
    assert columns == [
        ("shop", "str", False),
        ("amount", "float", False),
        ("note", "str", True),
        ("kind", "str", True),
        ("pieces", "int", False),
        ("at", "datetime", False),
    ]


def test_a_dataset_holds_the_keywords_of_its_decorator():
    made = _only(Sale, "dataset")
    assert (made.version, made.index, made.retention_us) == (3, True, 30 * 86_400_000_000)
    assert (made.key.name, made.timestamp.name) == ("shop", "at")
    assert (made.metadata.description, made.metadata.owner) == ("One row per sale.", "ops@example.com")
    assert [rule.mostly for rule in made.expectations] == [0.9]


def test_a_source_holds_durations_in_microseconds_and_tags_as_a_mapping():
    made = _only(Sale, "source")
    assert (made.every_us, made.max_lateness_us, made.cursor) == (5_000_000, 7_200_000_000, "at")
    assert made.connector.type == "files"
    assert made.connector.config == {"path": "/data/sales", "format": "csv", "null": "NA"}
    assert made.metadata.tags == {"raw": ""}


def test_pipeline_steps_keep_the_order_they_are_written_in():
    steps = _only(Stats, "pipeline").steps
    assert [type(step) for step in steps] == [FilterStep, JoinStep, AssignStep, AssignStep, AggregateStep]


def test_a_join_without_fields_brings_all_but_key_and_timestamp():
    (join,) = _only(Stats, "pipeline").joins
    assert join.fields == ("rate", "source")


def test_a_pipeline_names_its_inputs_once_the_left_one_first():
    made = _only(Stats, "pipeline")
    assert (made.input_datasets, made.output_dataset, made.version) == (("Sale", "Rate"), "Stats", 2)


def test_a_backfill_starts_at_the_given_instant():
    made = _only(Stats, "pipeline").backfill
    assert (made.enabled, made.since_us) == (True, 1_780_272_000_000_000)


def test_a_builder_call_leaves_the_node_it_is_called_on_as_it_was():
    seen = []

    @dataset()
    class Out:
        shop: str = field(key=True)
        n: int = field()
        at: datetime = field(timestamp=True)

        @pipeline()
        @inputs(Sale)
        def p(cls, sales):
            seen.append(sales)
            narrowed = sales.filter(col("amount") > 1)
            seen.append(narrowed)
            return narrowed.groupby("shop").aggregate(n=Count())

    assert [len(node.steps) for node in seen] == [0, 1]


def test_a_body_may_take_one_node_for_each_input():
    @dataset()
    class Out:
        shop: str = field(key=True)
        total: float = field()
        at: datetime = field(timestamp=True)

        @inputs(Sale, Rate)
        @pipeline()
        def p(cls, sales, rates):
            return sales.join(rates, on="shop", fields=["rate"]).groupby("shop").aggregate(total=Sum("rate"))

    assert _only(Out, "pipeline").joins[0].right == "Rate"


@dataset(event_id="receipt")
class Receipt:
    shop: str = field(key=True)
    receipt: str = field(regex="[A-Z]{2}[0-9]+")
    price: Decimal = field(scale=2, min=Decimal("0.01"))
    tax: Optional[Decimal] = field(scale=4)  # noqa: UP045  # the stock form
    parts: list[Decimal] = field(scale=3)
    tags: list[str] = field()
    kind: str = field(one_of=("cash", "card"))
    pieces: int = field(min=1, max=99)
    at: datetime = field(timestamp=True)


def with_band(frame):
    return frame.with_columns((frame["pieces"] * FACTOR).alias("band"))


def not_empty(frame):
    return frame.filter(frame["pieces"] > 0)


def _steps(build, *reads):
    """The steps of a pipeline over ``Receipt`` whose body is given."""

    @dataset()
    class Out:
        shop: str = field(key=True)
        n: float = field()
        at: datetime = field(timestamp=True)

        @pipeline()
        @inputs(Receipt, *reads)
        def p(cls, receipts, *others):
            return build(receipts, *others)

    assert declared_on(Out).problems == []
    return _only(Out, "pipeline")


def _counted(node):
    return node.groupby("shop").aggregate(n=Count())


def test_a_dataset_names_the_column_that_identifies_an_event():
    assert _only(Receipt, "dataset").event_id == "receipt"


def test_a_column_holds_what_a_value_must_be():
    columns = {column.name: column for column in _only(Receipt, "dataset").fields}
    assert columns["receipt"].regex == "[A-Z]{2}[0-9]+"
    assert (columns["pieces"].minimum, columns["pieces"].maximum) == (1, 99)
    assert (columns["price"].minimum, columns["kind"].one_of) == (0.01, ("cash", "card"))


def test_a_decimal_column_has_its_scale_in_its_type():
    columns = {column.name: column for column in _only(Receipt, "dataset").fields}
    assert [columns[name].type for name in ("price", "tax", "parts")] == [
        "decimal(2)",
        "decimal(4)",
        "list[decimal(3)]",
    ]
    assert columns["tax"].optional


def test_a_feature_looked_up_from_a_decimal_column_has_its_scale():
    @featureset
    class Prices:
        shop: str = feature()
        price: Decimal = feature(ref=Receipt.price)

    assert declared_on(Prices).problems == []
    assert _only(Prices, "featureset").feature("price").type == "decimal(2)"


def test_a_filter_and_a_transform_carry_the_text_of_their_functions():
    made = _steps(lambda node: _counted(node.filter(not_empty).transform(with_band, output_columns={"band": float})))
    kept, given, _ = made.steps
    assert isinstance(kept, FilterCodeStep)
    assert kept.code.source.startswith("def not_empty(frame):\n")
    assert isinstance(given, TransformStep)
    assert given.columns == (("band", "float"),)
    assert given.code.source.startswith("FACTOR = 2.0\n")
    assert given.code.entry_point == "with_band"


def test_a_transform_may_give_a_list_and_a_decimal():
    columns = {"parts": list[int], Receipt.price: "decimal(4)"}
    made = _steps(lambda node: _counted(node.transform(with_band, output_columns=columns)))
    assert made.steps[0].columns == (("parts", "list[int]"), ("price", "decimal(4)"))


@pytest.mark.parametrize(
    ("call", "step"),
    [
        (lambda node: node.rename(price="cost"), RenameStep(columns=(("price", "cost"),))),
        (
            lambda node: node.rename({"price": "cost", "tax": "vat"}),
            RenameStep(columns=(("price", "cost"), ("tax", "vat"))),
        ),
        (lambda node: node.rename({Receipt.price: "cost"}), RenameStep(columns=(("price", "cost"),))),
        (lambda node: node.select("shop", Receipt.pieces), SelectStep(columns=("shop", "pieces"))),
        (lambda node: node.drop(Receipt.price, "tax"), DropStep(columns=("price", "tax"))),
        (lambda node: node.dedup("shop", Receipt.receipt), DedupStep(by=("shop", "receipt"))),
        (lambda node: node.dedup(), DedupStep(by=())),
        (lambda node: node.explode(Receipt.tags), ExplodeStep(column="tags")),
        (lambda node: node.groupby("shop").latest(), LatestStep(keys=("shop",))),
        (lambda node: node.groupby("shop", Receipt.kind).first(), FirstStep(keys=("shop", "kind"))),
    ],
)
def test_a_call_of_the_builder_is_one_step(call, step):
    assert _steps(lambda node: _counted(call(node))).steps[0] == step


def test_a_join_may_name_columns_by_reference_and_bound_the_age_of_the_right_row():
    made = _steps(lambda node: _counted(node.join(Rate, on=Receipt.shop, fields=[Rate.rate], within="7d")))
    assert made.steps[0] == JoinStep(right="Rate", on="shop", fields=("rate",), within_us=7 * 86_400_000_000)


def test_a_union_holds_the_steps_of_its_other_side_and_names_what_they_read():
    def both(receipts, sales):
        same = sales.filter(col("amount") > 0).join(Rate, on="shop").select("shop", "at")
        return _counted(receipts.select("shop", "at").union(same))

    made = _steps(both, Sale)
    union = made.steps[1]
    assert isinstance(union, UnionStep)
    assert (union.dataset, [step.op for step in union.steps]) == ("Sale", ["filter", "join", "select"])
    assert made.input_datasets == ("Receipt", "Sale", "Rate")


def test_a_union_takes_a_dataset_as_it_is():
    made = _steps(lambda node: _counted(node.select("shop", "at").union(Sale)))
    assert (made.steps[1], made.input_datasets) == (UnionStep(dataset="Sale"), ("Receipt", "Sale"))


def test_an_aggregate_may_feed_another_and_each_has_groups_of_its_own():
    def nested(receipts):
        daily = receipts.groupby("shop", "kind").aggregate(sold=Sum(of="pieces", window=Tumbling("1d")))
        return daily.filter(col("sold") > 1).groupby("shop").aggregate(n=Avg(of="sold"))

    first, _, last = _steps(nested).steps
    assert (first.keys, first.emit, last.keys) == (("shop", "kind"), "on_change", ("shop",))


def test_an_aggregate_may_be_taken_at_each_event():
    def nested(receipts):
        recent = receipts.groupby("shop", "kind").aggregate(emit="on_event", sold=Sum(of="pieces", window="1h"))
        return recent.groupby("shop").aggregate(n=Max(of="sold"))

    assert _steps(nested).steps[0].emit == "on_event"


def test_a_pipeline_may_end_with_a_row_per_key():
    made = _steps(lambda node: node.assign(n=1.5).groupby("shop").latest())
    assert made.last_step == LatestStep(keys=("shop",))
    assert made.keys == ("shop",)


def test_every_step_and_aggregate_of_a_body_has_its_own_line():
    @dataset()
    class Out:
        shop: str = field(key=True)
        n: int = field()
        at: datetime = field(timestamp=True)

        @pipeline()
        @inputs(Receipt)
        def lines(cls, receipts):
            return (
                receipts.filter(col("pieces") > 1)
                .groupby("shop", "kind")
                .aggregate(
                    n=Sum(of="pieces"),
                    sold=Count(),
                )
                .groupby("shop")
                .aggregate(
                    n=Max(of="sold"),
                )
            )

    places = declared_on(Out).locations
    start = places["pipeline:lines"].line
    found = {
        key.removeprefix("pipeline:lines."): place.line - start for key, place in places.items() if "lines." in key
    }
    assert found == {"0": 4, "1": 6, "1.n": 7, "1.sold": 8, "2": 11, "2.n": 12, "n": 12}


def test_a_featureset_holds_features_and_extractors():
    made = _only(Features, "featureset")
    assert [(each.name, each.type, each.id) for each in made.features[:2]] == [("shop", "str", 1), ("n", "int", 2)]
    assert (made.entity.name, made.entity_type, made.online_clock) == ("shop", "shop", "event")
    assert (made.feature("n").lookup.dataset, made.feature("n").lookup.field) == ("Stats", "n")
    assert (made.extractors[0].inputs, made.extractors[0].outputs, made.extractors[0].deps) == (
        ("n", "minutes"),
        ("rate",),
        ("Stats",),
    )
    assert made.extractors[0].version == 4


def test_an_extractor_carries_the_functions_and_constants_it_uses():
    (made,) = _only(Features, "featureset").extractors
    assert made.code.source == (
        "FACTOR = 2.0\n"
        "\n"
        "def scaled(value):\n    return value * FACTOR\n"
        "\n"
        "def per_minute(cls, ts, n, minutes):\n    return scaled(n) / minutes\n"
    )


def test_a_row_is_a_plain_value_and_a_class_attribute_is_the_column():
    row = Sale("s1", 2.5, None, "retail", 3, datetime(2026, 1, 1, tzinfo=UTC))
    assert (row.shop, row.amount, row.pieces) == ("s1", 2.5, 3)
    assert row == Sale(shop="s1", amount=2.5, note=None, kind="retail", pieces=3, at=row.at)
    assert isinstance(Sale.amount, Field)
    assert Sale.amount.fqn() == "Sale.amount"


def test_an_optional_column_may_be_left_out_of_a_row_and_another_may_not():
    assert Sale(shop="s1", amount=2.5, pieces=3, at=datetime(2026, 1, 1, tzinfo=UTC)).note is None
    with pytest.raises(TypeError, match="missing 'amount'"):
        Sale(shop="s1", pieces=3, at=datetime(2026, 1, 1, tzinfo=UTC))


def test_an_unknown_catalog_keyword_only_warns():
    with pytest.warns(FutureWarning, match="colour"):

        @dataset(colour="red")
        class Out:
            shop: str = field(key=True)
            at: datetime = field(timestamp=True)

    assert _only(Out, "dataset").name == "Out"


# Refused at once, as the stock SDK does, when no compile is collecting.


def test_a_dataset_without_key_is_a_value_error_where_it_stands():
    with pytest.raises(ValueError, match="exactly one key"):

        @dataset()
        class Out:
            shop: str = field()
            at: datetime = field(timestamp=True)


def test_a_malformed_retention_is_a_value_error_where_it_stands():
    with pytest.raises(ValueError, match="5min"):

        @dataset(retention="5min")
        class Out:
            shop: str = field(key=True)
            at: datetime = field(timestamp=True)


def test_a_lambda_as_filter_is_a_type_error_where_it_stands():
    with pytest.raises(TypeError, match="a lambda"):

        @dataset()
        class Out:
            shop: str = field(key=True)
            n: int = field()
            at: datetime = field(timestamp=True)

            @pipeline()
            @inputs(Sale)
            def p(cls, sales):
                return sales.filter(lambda frame: frame).groupby("shop").aggregate(n=Count())


def test_a_closure_as_transform_is_a_type_error_where_it_stands():
    limit = 3

    def above(frame):
        return frame.head(limit)

    with pytest.raises(TypeError, match=r"(?s)test_declarations\.py:\d+.*the closure `above`, which reads limit.*def"):
        _steps(lambda node: _counted(node.transform(above)))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        pytest.param(lambda: feature(ref=Stats.n, request=True), ValueError, id="ref and request"),
        pytest.param(lambda: feature(ref="Stats.n"), TypeError, id="ref by name"),
        pytest.param(lambda: source(KafkaSource(topic="t"), every="5s")(Rate), ValueError, id="interval on a stream"),
        pytest.param(lambda: source(FileSource(path="/x"), cdc="merge")(Rate), ValueError, id="unknown cdc"),
        pytest.param(lambda: source(object())(Rate), TypeError, id="no connector"),
        pytest.param(lambda: KafkaSource(), ValueError, id="no topic"),
        pytest.param(lambda: KafkaSource(topic="t", security_protocol="TLS"), ValueError, id="unknown protocol"),
        pytest.param(lambda: PostgresSource(table=""), ValueError, id="empty table"),
        pytest.param(lambda: Backfill(since=datetime(2026, 6, 1)), ValueError, id="naive datetime"),  # noqa: DTZ001
        pytest.param(lambda: Backfill(since="2026-06-01"), TypeError, id="text as datetime"),
        pytest.param(lambda: Secret(env="A", name="B"), ValueError, id="two secrets"),
        pytest.param(lambda: Secret(scope="a"), ValueError, id="a scope without a key"),
        pytest.param(lambda: Secret(key="a"), ValueError, id="a key without a scope"),
        pytest.param(lambda: Secret(scope="a", key="b", env="C"), ValueError, id="a scope and a variable"),
        pytest.param(lambda: Secret(scope="a/b", key="c"), ValueError, id="a scope with a slash"),
        pytest.param(lambda: LastK(of="x", k=0), ValueError, id="k below one"),
        pytest.param(lambda: Sum(of="x", window="5 m"), ValueError, id="duration with a space"),
        pytest.param(lambda: feature(2), TypeError, id="positional argument"),
    ],
)
def test_what_the_stock_sdk_refuses_at_once_is_refused_at_once(make, error):
    with pytest.raises(error):
        make()


def test_a_refusal_is_of_our_error_tree_and_names_the_line():
    with pytest.raises(DefinitionError) as caught:
        feature(ref=Stats.n, request=True)
    assert isinstance(caught.value, DeclarationValueError)
    (problem,) = caught.value.problems
    assert problem.file.endswith("test_declarations.py")
    assert issubclass(DeclarationTypeError, TypeError)


def test_importing_a_module_with_other_mistakes_does_not_raise_and_compiling_its_classes_does():
    @dataset()
    class Out:
        shop: str = field(key=True)
        n: complex = field()
        at: datetime = field(timestamp=True)

        @pipeline()
        @inputs(Sale)
        def p(cls, sales):
            raise RuntimeError("no")

    codes = [problem.code for problem in declared_on(Out).problems]
    assert codes == ["unknown_type", "pipeline_body"]


# Connectors


def test_a_connection_parameter_comes_from_the_environment_unless_it_is_given(monkeypatch):
    monkeypatch.setenv("THYME_POSTGRES_HOST", "db.example.com")
    monkeypatch.setenv("THYME_POSTGRES_PORT", "6432")
    monkeypatch.setenv("THYME_POSTGRES_USER", "")
    given = PostgresSource(table="t", user="reader")
    assert (given.host, given.port, given.user, given.database) == ("db.example.com", 6432, "reader", "")
    assert PostgresSource(table="t", host="other").host == "other"


def test_what_belongs_to_the_dataset_never_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("THYME_POSTGRES_TABLE", "t")
    with pytest.raises(ValueError, match="table"):
        PostgresSource()


def test_a_credential_is_stored_as_a_tagged_reference_and_never_shown():
    by_env = PostgresSource(table="t", password=Secret(env="PASSWORD"))
    literal = PostgresSource(table="t", password="hunter2")
    assert by_env.to_dict()["password"] == {"kind": "env", "value": "PASSWORD"}
    kept = PostgresSource(table="t", password=Secret(scope="warehouse", key="password"))
    assert kept.to_dict()["password"] == {"kind": "scope", "value": "warehouse/password"}
    assert literal.to_dict()["password"] == {"kind": "literal", "value": "hunter2"}
    assert "hunter2" not in repr(literal)
    assert "hunter2" not in repr(KafkaSource(topic="t", schema_registry_url="https://reader:hunter2@schemas.internal"))


def test_the_bucket_source_is_stored_under_the_name_with_an_underscore():
    assert S3JsonSource(bucket="b", prefix="p/").connector_type == "s3_json"


def test_a_snowflake_source_has_the_keywords_of_the_stock_one():
    keys = SnowflakeSource(table="t").to_dict().keys()
    assert {"account", "database", "schema", "warehouse", "role", "user", "private_key", "endpoint_url"} <= keys


def test_a_relative_path_is_taken_from_the_folder_of_its_module(tmp_path):
    (tmp_path / "m.py").write_text(
        "from datetime import datetime\n"
        "from featurelib import FileSource, dataset, field, source\n"
        "@source(FileSource(path='data/*.csv'))\n"
        "@dataset()\n"
        "class A:\n"
        "    x: int = field(key=True)\n"
        "    at: datetime = field(timestamp=True)\n"
    )
    commit = compile_module(tmp_path / "m.py")
    assert commit.sources[0].connector.config["path"] == str(tmp_path / "data/*.csv")


def test_every_public_name_is_listed_in_order_and_can_be_imported():
    assert featurelib.__all__ == sorted(featurelib.__all__)
    assert all(hasattr(featurelib, name) for name in featurelib.__all__)
