"""Modules with mistakes: each marked line ends in ``#! code``, and :data:`SAYS` holds what must be said of it."""

from tests.support.modules import EVENT, HEAD, RATE, STATS, pipeline_module

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
    "column and method of one name": """
@dataset()
class A:
    x: int = field(key=True)
    rules: int
    at: datetime = field(timestamp=True)
    @expectations  #! duplicate_name
    def rules(cls):
        return []
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


def _column(line: str) -> str:
    """A dataset with one more column."""
    return f"""
@dataset()
class A:
    x: int = field(key=True)
    {line}
    at: datetime = field(timestamp=True)
"""


def _event_id(decorator: str, line: str) -> str:
    """A dataset whose events have an identity."""
    return f"""
{decorator}
class A:
    x: int = field(key=True)
    {line}
    at: datetime = field(timestamp=True)
"""


_DECIMAL = "from decimal import Decimal\n"

RESTRICTIONS = {
    "min above max": _column("y: float = field(min=5, max=1)  #! invalid_restriction"),
    "min of text": _column("y: str = field(min=1)  #! invalid_restriction"),
    "max of a list": _column("y: list[int] = field(max=9)  #! invalid_restriction"),
    "min that is text": _column('y: int = field(min="1")  #! invalid_restriction'),
    "max that is a flag": _column("y: int = field(max=True)  #! invalid_restriction"),
    "min that is not a number": _column('y: float = field(min=float("nan"))  #! invalid_restriction'),
    "one_of of another type": _column('y: int = field(one_of=[1, "two"])  #! invalid_restriction'),
    "one_of as one text": _column('y: str = field(one_of="abc")  #! invalid_restriction'),
    "one_of that is a number": _column("y: int = field(one_of=5)  #! invalid_restriction"),
    "min beyond every number": _column("y: float = field(min=10**400)  #! invalid_restriction"),
    "one_of nothing": _column("y: str = field(one_of=[])  #! invalid_restriction"),
    "one_of for a list": _column("y: list[str] = field(one_of=['a'])  #! invalid_restriction"),
    "regex on a number": _column('y: int = field(regex="[0-9]+")  #! invalid_restriction'),
    "regex that does not compile": _column('y: str = field(regex="[a-")  #! invalid_restriction'),
    "regex that looks ahead": _column('y: str = field(regex="(?=a)b")  #! invalid_restriction'),
    "scale on a float": _column("y: float = field(scale=2)  #! invalid_restriction"),
    "decimal without scale": _column("y: Decimal = field()  #! invalid_scale"),
    "decimal with too many digits": _column("y: Decimal = field(scale=40)  #! invalid_scale"),
    "decimal as key": """
@dataset()
class A:
    x: Decimal = field(key=True, scale=2)  #! key_type
    at: datetime = field(timestamp=True)
""",
    "event id of no column": _event_id('@dataset(event_id="idd")  #! unknown_column', "id: str = field()"),
    "event id that may be null": _event_id('@dataset(event_id="id")  #! event_id_type', "id: Optional[str] = field()"),
    "event id of type float": _event_id('@dataset(event_id="id")  #! event_id_type', "id: float = field()"),
    "event id that is no name": _event_id('@dataset(event_id="a b")  #! invalid_value', "id: str = field()"),
    "list of lists": _column("y: list[list[int]] = field()  #! unknown_type"),
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
@source(KafkaSource(topic="t"), cursor="at")  #! cursor_on_stream
{EVENT.strip()}
""",
    "no connector": f"""
@source("kafka://t")  #! invalid_connector
{EVENT.strip()}
""",
    "connector nobody can read": f"""
class Pigeons:
    connector_type = "carrier_pigeon"
    is_streaming = False

    def to_dict(self):
        return {{"loft": "north"}}


@source(Pigeons())  #! unsupported_connector
{EVENT.strip()}
""",
    "table without a cursor": f"""
@source(BigQuerySource(dataset_id="d", table="t"))  #! missing_cursor
{EVENT.strip()}
""",
    "missing table": f"""
@source(PostgresSource(database="d"), cursor="at")  #! invalid_connector
{EVENT.strip()}
""",
    "unknown file format": f"""
@source(FileSource(path="a", format="xml"))  #! invalid_connector
{EVENT.strip()}
""",
    "debezium from PostgreSQL": f"""
@source(PostgresSource(table="t"), cursor="at", cdc="debezium")  #! invalid_cdc
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
    "upsert beside change data": """
@source(FileSource(path="a.csv"), cdc="upsert")
@dataset(upsert=True)  #! upsert_without_records
class A:
    x: int = field(key=True)
    at: datetime = field(timestamp=True)
""",
    "upsert of a pipeline's output": EVENT
    + """
@dataset(upsert=True)  #! upsert_without_records
class Out:
    shop: str = field(key=True)
    n: int = field()
    at: datetime = field(timestamp=True)
    @pipeline()
    @inputs(Sale)
    def p(cls, sales):
        return sales.groupby("shop").aggregate(n=Count())
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
            .filter(lambda frame: frame)  #! invalid_function
            .groupby("shop").aggregate(total=Sum(of="amount"))
        )
    """,
    "no aggregate class": """
        return sales.groupby("shop").aggregate(total="sum")  #! invalid_aggregate
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


def _chain(*lines: str) -> str:
    """A body that chains these calls on the rows of ``Sale``."""
    return "return (\n    sales\n" + "".join(f"    {line}\n" for line in lines) + ")"


_TOTAL = '.groupby("shop").aggregate(total=Sum(of="amount"))'
_EVENTS = (
    EVENT.replace("note: Optional[str] = field()", "note: Optional[str] = field()\n    tags: list[str] = field()")
    + """
def doubled(frame):
    return frame.with_columns(frame["amount"] * 2)

def of_two(frame, other):
    return frame

def with_unknown(frame):
    return frame.head(undefined_number)

async def later(frame):
    return frame

@dataset()
class Visit:
    shop: str = field(key=True)
    amount: int = field()
    at: datetime = field(timestamp=True)

@dataset()
class Trend:
    shop: str = field(key=True)
    recent: float = field()
    at: datetime = field(timestamp=True)
    @pipeline()
    @inputs(Visit)
    def trend(cls, visits):
        return visits.groupby("shop").aggregate(recent=Avg(of="amount", window="1h"))
"""
)

STEPS = {
    "join that names its columns as one text": _chain(
        '.join(Rate, on="shop", fields="rate")  #! invalid_column', _TOTAL
    ),
    "transform by a lambda": _chain(".transform(lambda frame: frame)  #! invalid_function", _TOTAL),
    "transform by a name": _chain('.transform("doubled")  #! invalid_function', _TOTAL),
    "transform by a coroutine": _chain(".transform(later)  #! invalid_function", _TOTAL),
    "transform by a function of two": _chain(".transform(of_two)  #! invalid_function", _TOTAL),
    "filter by a closure": """
        limit = 10
        def above(frame):
            return frame.filter(frame["amount"] > limit)
        return (
            sales
            .filter(above)  #! invalid_function
            .groupby("shop").aggregate(total=Sum(of="amount"))
        )
    """,
    "filter by a number": _chain(".filter(42)  #! invalid_predicate", _TOTAL),
    "assigned list": _chain(".assign(twice=[1, 2])  #! invalid_expression", _TOTAL),
    "transform that gives an unknown type": _chain(
        '.transform(doubled, output_columns={"big": complex})  #! unknown_type',
        '.groupby("shop").aggregate(total=Sum(of="big"))',
    ),
    "transform that gives a column of the platform": _chain(
        '.transform(doubled, output_columns={"__time": int})  #! reserved_name', _TOTAL
    ),
    "column of a transform of another type": _chain(
        '.transform(doubled, output_columns={"band": str})',
        '.groupby("shop")',
        ".aggregate(",
        '    total=Sum(of="band"),  #! aggregate_type',
        ")",
    ),
    "rename of no column": _chain('.rename(amout="value")  #! unknown_column', _TOTAL),
    "rename onto another column": _chain('.rename(pieces="amount")  #! duplicate_column', _TOTAL),
    "rename of two to one": _chain('.rename({"pieces": "n", "paid": "n"})  #! duplicate_column', _TOTAL),
    "column under its old name": _chain(
        '.rename(amount="value")',
        '.groupby("shop")',
        ".aggregate(",
        '    total=Sum(of="amount"),  #! unknown_column',
        ")",
    ),
    "select of no column": _chain('.select("shop", "amonut", "amount")  #! unknown_column', _TOTAL),
    "select of a column twice": _chain('.select("shop", "amount", "amount")  #! duplicate_column', _TOTAL),
    "column that was not selected": _chain(
        '.select("shop", "pieces")',
        '.groupby("shop").aggregate(',
        '    total=Sum(of="amount"),  #! unknown_column',
        ")",
    ),
    "drop of no column": _chain('.drop("nothing")  #! unknown_column', _TOTAL),
    "group key that was dropped": _chain(
        '.drop("shop")',
        '.groupby("shop")',
        '.aggregate(total=Sum(of="amount"))  #! unknown_column',
    ),
    "dedup by no column": _chain('.dedup("noteid")  #! unknown_column', _TOTAL),
    "explode of text": _chain('.explode("note")  #! type_mismatch', _TOTAL),
    "explode of no column": _chain('.explode("tag")  #! unknown_column', _TOTAL),
    "column named by a number": _chain('.select("shop", 3, "amount")  #! invalid_column', _TOTAL),
    "union of other columns": _chain(".union(Rate)  #! union_mismatch, union_mismatch", _TOTAL),
    "union of another type": _chain(
        '.select("shop", "amount", "at")',
        ".union(Visit)  #! union_mismatch",
        _TOTAL,
    ),
    "union of no dataset": _chain('.union("Rate")  #! not_a_dataset', _TOTAL),
    "mistake inside a union": """
        visits = (
            sales
            .filter(col("payd") == True)  #! unknown_column
            .assign(amount=1.0)
        )
        return sales.union(visits).groupby("shop").aggregate(total=Sum(of="amount"))
    """,
    "join within no duration": _chain('.join(Rate, on="shop", within="1 week")  #! invalid_duration', _TOTAL),
    "join with steps on the right": """
        rates = sales.filter(col("paid") == True)
        return (
            sales
            .join(rates, on="shop")  #! join_right
            .groupby("shop").aggregate(total=Sum(of="amount"))
        )
    """,
    "join with a value that fades": _chain(
        '.join(Trend, on="shop")  #! unstable_input',
        '.groupby("shop").aggregate(total=Sum(of="recent"))',
    ),
    "union with a value that fades": _chain(
        '.select("shop", "amount", "at").rename(amount="recent")',
        ".union(Trend)  #! unstable_input",
        '.groupby("shop").aggregate(total=Sum(of="recent"))',
    ),
    "continuous window that feeds another": _chain(
        '.groupby("shop", "note").aggregate(',
        '    part=Sum(of="amount", window="1d"),  #! unstable_input',
        ")",
        '.groupby("shop").aggregate(total=Max(of="part"))',
    ),
    "hopping window that feeds another": _chain(
        '.groupby("shop", "note").aggregate(',
        '    part=Sum(of="amount", window=Hopping("1d", "1h")),  #! unstable_input',
        ")",
        '.groupby("shop").aggregate(total=Max(of="part"))',
    ),
    "shifted lifetime that feeds another": _chain(
        '.groupby("shop", "note").aggregate(',
        '    part=Sum(of="amount", window=Lifetime(offset="1d")),  #! unstable_input',
        ")",
        '.groupby("shop").aggregate(total=Max(of="part"))',
    ),
    "fading sum that feeds another": _chain(
        '.groupby("shop", "note").aggregate(',
        '    part=ExpDecaySum(of="amount", half_life="1d"),  #! unstable_input',
        ")",
        '.groupby("shop").aggregate(total=Max(of="part"))',
    ),
    "two tumbling windows that feed another": _chain(
        '.groupby("shop", "note")',
        ".aggregate(  #! mixed_windows",
        '    day=Sum(of="amount", window=Tumbling("1d")),',
        '    hour=Sum(of="amount", window=Tumbling("1h")),',
        ")",
        '.groupby("shop").aggregate(total=Max(of="day"))',
    ),
    "aggregate without groups that feeds another": _chain(
        '.aggregate(part=Sum(of="amount"))  #! no_group_key',
        '.groupby("shop")',
        '.aggregate(total=Max(of="part"))  #! unknown_column',
    ),
    "column that is gone after an aggregate": _chain(
        '.groupby("shop", "note").aggregate(part=Sum(of="amount"))',
        '.groupby("shop").aggregate(',
        '    total=Max(of="amount"),  #! unknown_column',
        ")",
    ),
    "aggregate named like its key": _chain(
        '.groupby("shop", "note").aggregate(',
        "    note=Count(),  #! duplicate_column",
        ")",
        '.groupby("shop").aggregate(total=Max(of="note"))',
    ),
    "text that an aggregate gave, summed": _chain(
        '.groupby("shop", "paid").aggregate(part=Last(of="note"))',
        '.groupby("shop").aggregate(',
        '    total=Sum(of="part"),  #! aggregate_type',
        ")",
    ),
    "emit at another time": _chain(
        '.groupby("shop")',
        '.aggregate(emit="hourly", total=Sum(of="amount"))  #! invalid_value',
    ),
    "latest row without the output column": _chain('.groupby("shop").latest()  #! unfilled_field'),
    "latest row with a column of another type": _chain(
        '.select("shop", "note").rename(note="total")',
        '.groupby("shop").latest()  #! output_type_mismatch',
    ),
    "first row of another group": _chain(
        '.rename(amount="total")',
        '.groupby("note").first()  #! group_key_mismatch',
    ),
    "latest row by no column": _chain(
        '.groupby("shopp").latest()  #! unknown_column',
        _TOTAL,
    ),
    "number compared with text after an aggregate": _chain(
        '.groupby("shop").aggregate(total=Sum(of="amount"))',
        '.groupby("shop")',
        ".latest()",
        '.filter(col("total") == "many")  #! type_mismatch',
        '.groupby("shop").first()',
    ),
}

AGGREGATES = {
    "last of no values": 'total=LastK(of="amount", k=0),  #! pipeline_body',
    "percentile above 100": 'total=ApproxPercentile(of="amount", pct=120),  #! pipeline_body',
    "quantile above 1": 'total=Quantile(of="amount", q=50),  #! pipeline_body',
    "half-life without a unit": 'total=ExpDecaySum(of="amount", half_life="7"),  #! pipeline_body',
    "stride beyond the size": 'total=Sum(of="amount", window=Hopping("1h", "1d")),  #! pipeline_body',
    "session of no gap": 'total=Sum(of="amount", window=Session()),  #! pipeline_body',
    "cap of no rows": 'total=Sum(of="amount", window=Continuous("1d", max_rows=0)),  #! pipeline_body',
    "column that is no name": "total=Sum(of=5),  #! pipeline_body",
    "quantile of text": 'total=Quantile(of="note"),  #! aggregate_type',
    "spread of a flag": 'total=Stddev(of="paid"),  #! aggregate_type',
    "distinct lists": 'total=ApproxDistinct(of="tags"),  #! aggregate_type',
    "first of nothing": "total=First(),  #! missing_column",
    "most frequent as one number": 'total=TopK(of="amount", k=3),  #! output_type_mismatch',
    "count as a default text": 'total=Count(default="none"),  #! default_type',
    "list as the default of a number": 'total=Sum(of="amount", default=[1.0]),  #! default_type',
    "condition on a number": 'total=Sum(of="amount", where=col("pieces") + 1 == "a"),  #! type_mismatch',
}

CHAINS = {
    "window of a chained aggregate": EVENT
    + STATS
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    top: float = field()
    at: datetime = field(timestamp=True)
    @pipeline()  #! unstable_input
    @inputs(ShopStats)
    def p(cls, stats):
        return stats.groupby("shop").aggregate(top=Max(of="total_1d"))
""",
    "column that a chained pipeline does not give": EVENT
    + STATS
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    top: float = field()
    at: datetime = field(timestamp=True)
    @pipeline()  #! unstable_input
    @inputs(ShopStats)
    def p(cls, stats):
        return stats.groupby("shop").aggregate(
            top=Max(of="total_7d"),  #! unknown_column
        )
""",
    "united dataset that is not named": EVENT
    + """
@dataset()
class Out:
    shop: str = field(key=True)
    n: int = field()
    at: datetime = field(timestamp=True)
    @pipeline()
    @inputs(Sale)
    def p(cls, sales):
        return (
            sales
            .union(Undeclared)  #! pipeline_body
            .groupby("shop").aggregate(n=Count())
        )
""",
    "group keys that make no text": EVENT
    + """
@dataset()
class Out:
    shop: int = field(key=True)
    n: int = field()
    at: datetime = field(timestamp=True)
    @pipeline()
    @inputs(Sale)
    def p(cls, sales):
        return (
            sales
            .groupby("shop", "note")
            .aggregate(n=Count())  #! key_type_mismatch
        )
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
    @extractor  #! missing_dep
    @extractor_outputs("x")
    def f(cls, ts):
        return ShopStats.lookup(ts, shop="a")["total_1d"]
"""),
    "look-up in the body without index": HEAD
    + EVENT.replace("index=True", "")
    + """
@featureset
class F:
    shop: str = feature()
    x: float = feature()
    @extractor(deps=[Sale])  #! not_indexed
    @extractor_inputs("shop")
    @extractor_outputs("x")
    def f(cls, ts, shop):
        return Sale.lookup(ts, shop=shop)["amount"]
""",
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
    "dependency that is no list": _features("""\
    x: float = feature()
    @extractor(deps=Sale)  #! invalid_dep
    @extractor_inputs("shop")
    @extractor_outputs("x")
    def f(cls, ts, shop):
        return 1.0
"""),
    "decimals of no scale, a wrong one, and a scale without decimals": _DECIMAL
    + HEAD
    + """
@featureset
class F:
    shop: str = feature()
    x: Decimal = feature(request=True)  #! invalid_scale
    y: Optional[Decimal] = feature(request=True, scale=True)  #! invalid_scale
    z: int = feature(request=True, scale=2)  #! invalid_scale
""",
    "defaults that are no values of their types": _DECIMAL
    + HEAD
    + """
@featureset
class F:
    shop: str = feature()
    a: Decimal = feature(request=True, scale=2, default=1.239)  #! default_type
    b: float = feature(request=True, default=float("nan"))  #! default_type
    c: int = feature(request=True, default=10**30)  #! default_type
    d: datetime = feature(request=True, default="today")  #! default_type
    e: str = feature(request=True, default=["a"])  #! default_type
""",
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


def mistaken_modules() -> dict[str, str]:
    """The text of every module, by kind and name."""
    tables = [
        *(("dataset", name, HEAD + text) for name, text in DATASETS.items()),
        *(("restriction", name, _DECIMAL + HEAD + text) for name, text in RESTRICTIONS.items()),
        *(("source", name, HEAD + text) for name, text in SOURCES.items()),
        *(("pipeline", name, pipeline_module(text)) for name, text in PIPELINES.items()),
        *(("pipeline", name, text) for name, text in PIPELINE_MODULES.items()),
        *(("step", name, pipeline_module(text, sources=_EVENTS + RATE)) for name, text in STEPS.items()),
        *(("aggregate", name, _aggregated(line)) for name, line in AGGREGATES.items()),
        *(("chain", name, HEAD + text) for name, text in CHAINS.items()),
        *(("featureset", name, text) for name, text in FEATURESETS.items()),
        *(("module", name, text) for name, text in MODULES.items()),
    ]
    return {f"{kind}: {name}": text for kind, name, text in tables}


def _aggregated(line: str) -> str:
    body = f'return sales.groupby("shop").aggregate(\n    {line}\n)'
    return pipeline_module(body, sources=_EVENTS)
