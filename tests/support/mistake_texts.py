"""What is said of each module of :mod:`tests.support.mistaken_modules`: parts of the message and of the hint.

In the order of the lines, as a commit reports them. Where nothing else helps, a hint names what there is.
"""

SAYS: dict[str, list[tuple[str, str]]] = {
    "dataset: no key": [
        ("a dataset has exactly one key column; found none", "Mark one column with field(key=True)."),
    ],
    "dataset: two keys": [
        ("a dataset has exactly one key column; found x, y", "Mark one column with field(key=True)."),
    ],
    "dataset: no timestamp": [
        ("a dataset has exactly one timestamp column; found none", "Mark one column with field(timestamp=True)."),
    ],
    "dataset: neither": [
        ("a dataset has exactly one key column; found none", "Mark one column with field(key=True)."),
        ("a dataset has exactly one timestamp column; found none", "Mark one column with field(timestamp=True)."),
    ],
    "dataset: optional key": [
        ("the key `x` is optional", "A key is never null."),
    ],
    "dataset: float key": [
        ("a key is one of bool, datetime, int, str; found float", "Declare it as str, or mark another column."),
    ],
    "dataset: timestamp of another type": [
        ("the event time is a datetime that is never null; found str", "Write `at: datetime`."),
    ],
    "dataset: unknown type": [
        ("complex is not a column type", "Supported are int, float, str, bool,"),
        ("dict[str, int] is not a column type", "Supported are int, float, str, bool,"),
    ],
    "dataset: no annotation": [
        ("the column has no type", "Write `y: <type> = field()`."),
    ],
    "dataset: bad retention": [
        ("retention: '1mo' is not a duration", "Write retention='30d'."),
    ],
    "dataset: version zero": [
        ("version: Input should be greater than 0; found 0", "Change it to what the message asks for."),
    ],
    "dataset: wrong metadata": [
        ("owner: Input should be a valid string; found 7", "Change it to what the message asks for."),
    ],
    "dataset: default value": [
        ("a column has no default", "Write `y: <type> = field()`."),
    ],
    "dataset: column and method of one name": [
        ("`rules` names a column and a method of the class", "Rename one of them."),
    ],
    "dataset: same name twice": [
        ("the commit holds the dataset `A@1` 2 times", "Rename one, or give it another version."),
    ],
    "dataset: expectation of an unknown column": [
        ("there is no column `z` in A", "A has x, at."),
    ],
    "dataset: bounds on text": [
        ("`x` is str; bounds hold for numbers", "Expect values in a set instead."),
    ],
    "dataset: expectations that raise": [
        ("the body raised NameError: name 'nonsense' is not defined", "The body runs once, as the class is"),
    ],
    "dataset: share above one": [
        ("mostly=99 is not a share", "Write mostly=0.99 for 99 % of a batch."),
    ],
    "dataset: expectations outside a dataset": [
        ("the expectations belongs to no declared class", "Decorate its class with @dataset(…)."),
    ],
    "restriction: one_of that is a number": [
        ("one_of lists the values accepted; found 5", 'Write field(one_of=["a", "b"]).'),
    ],
    "restriction: min beyond every number": [
        ("min and max are numbers; found min=1000", "Write field(min=0, max=100)."),
    ],
    "restriction: min above max": [
        ("min=5 is above max=1; no value fits", "Swap them."),
    ],
    "restriction: min of text": [
        ("min and max bound numbers; `y` is str", "Leave them out, or write one_of=[…]."),
    ],
    "restriction: max of a list": [
        ("min and max bound numbers; `y` is list[int]", "Leave them out, or write one_of=[…]."),
    ],
    "restriction: min that is text": [
        ("min and max are numbers; found min='1', max=None", "Write field(min=0, max=100)."),
    ],
    "restriction: max that is a flag": [
        ("min and max are numbers; found min=None, max=True", "Write field(min=0, max=100)."),
    ],
    "restriction: min that is not a number": [
        ("a bound is a finite number; found nan … None", "Leave an open side out."),
    ],
    "restriction: one_of of another type": [
        ("one_of holds 'two', which is no int", "Give values of type int."),
    ],
    "restriction: one_of as one text": [
        ("one_of lists the values accepted; found 'abc'", 'Write field(one_of=["a", "b"]).'),
    ],
    "restriction: one_of nothing": [
        ("one_of lists the values accepted; found []", 'Write field(one_of=["a", "b"]).'),
    ],
    "restriction: one_of for a list": [
        ("one_of lists single values; `y` is list[str]", "Leave it out."),
    ],
    "restriction: regex on a number": [
        ("regex matches text; `y` is int", "Leave it out, or declare the column as str."),
    ],
    "restriction: regex that does not compile": [
        (
            "regex='[a-': not a regular expression: unterminated character set at",
            "Write a regular expression; the whole value",
        ),
    ],
    "restriction: regex that looks ahead": [
        ("regex='(?=a)b': `(?` is not offered in a pattern", "Write a regular expression; the whole value"),
    ],
    "restriction: scale on a float": [
        ("scale= is for Decimal columns; found float", "Leave it out, or declare the column as"),
    ],
    "restriction: decimal without scale": [
        ("a Decimal column has 0 to 18 digits after the point; found scale=None", "Write field(scale=2)."),
    ],
    "restriction: decimal with too many digits": [
        ("a Decimal column has 0 to 18 digits after the point; found scale=40", "Write field(scale=2)."),
    ],
    "restriction: decimal as key": [
        ("a key is one of bool, datetime, int, str; found decimal(2)", "Declare it as str, or mark another column."),
    ],
    "restriction: event id of no column": [
        ("event_id: there is no column `idd` in A", "Did you mean `id`?"),
    ],
    "restriction: event id that may be null": [
        (
            "event_id names a str or int that is never null; `id` is Optional[str]",
            "Name a column that identifies each event.",
        ),
    ],
    "restriction: event id of type float": [
        ("event_id names a str or int that is never null; `id` is float", "Name a column that identifies each event."),
    ],
    "restriction: event id that is no name": [
        (
            "event_id: String should match pattern '^[A-Za-z_][A-Za-z0-9_]{0,127}$';",
            "Change it to what the message asks for.",
        ),
    ],
    "restriction: list of lists": [
        ("list[list[int]] is not a column type", "Supported are int, float, str, bool,"),
    ],
    "source: duration with two letters": [
        ("every: '5min' is not a duration", "Write every='5m'."),
    ],
    "source: lateness with a sign": [
        ("max_lateness: '-1d' is not a duration", "Write max_lateness='5m'."),
    ],
    "source: unknown cdc": [
        ("cdc is 'merge'; it must be one of append, debezium, upsert", "Leave it out for append."),
    ],
    "source: cursor on a stream": [
        ("kafka pushes its records; cursor and every have no meaning for it", "Leave both out."),
    ],
    "source: no connector": [
        ("source() takes a connector; found a str", "Write FileSource(path=…) or another."),
    ],
    "source: connector nobody can read": [
        ("this platform cannot read the connector `carrier_pigeon` yet", "It reads bigquery, files, iceberg, kafka,"),
    ],
    "source: table without a cursor": [
        ("a BigQuery table is polled by a cursor column", "such as cursor='updated_at'."),
    ],
    "source: missing table": [
        ("`table` is required", "Write PostgresSource(table=…)."),
    ],
    "source: unknown file format": [
        ("`format` is 'xml'; it must be one of parquet, csv, jsonl", "Choose one, or leave it out for"),
    ],
    "source: debezium from PostgreSQL": [
        ("Debezium envelopes do not come from a PostgreSQL table", "Run Debezium and read its Kafka topic."),
    ],
    "source: two sources": [
        ("the commit holds the source `Sale` 2 times", "Rename one, or give it another version."),
    ],
    "source: source of no dataset": [
        ("the source feeds `A`, which is not a dataset", "The commit has none."),
    ],
    "source: upsert beside change data": [
        (
            "upsert=True is of records that are appended; its source's cdc='upsert' says which of them count",
            "Leave out upsert=True.",
        )
    ],
    "source: upsert of a pipeline's output": [
        (
            "upsert=True is of records that are appended; the pipeline `p` says which of them count",
            "Leave out upsert=True.",
        )
    ],
    "source: source of a pipeline's output": [
        ("it has a source and is filled by the pipeline `p`", "A dataset is fed by one of them."),
    ],
    "pipeline: body that raises": [
        (
            "the body raised AttributeError: 'PipelineNode' object has no attribute",
            "The body runs once, as the class is",
        ),
    ],
    "pipeline: window of an unknown unit": [
        ("the body raised ValueError: '1mo' is not a duration", "The body runs once, as the class is"),
    ],
    "pipeline: unknown column": [
        ("`total`: there is no column `amout` in Sale", "Did you mean `amount`?"),
    ],
    "pipeline: sum of text": [
        ("`total`: sum of `note`, which is str", "sum takes decimal, float, int."),
    ],
    "pipeline: max of a flag": [
        ("`total`: max of `paid`, which is bool", "max takes datetime, decimal, float, int,"),
    ],
    "pipeline: sum of nothing": [
        ("`total`: sum names no column", 'Write of="…".'),
    ],
    "pipeline: aggregate of no output column": [
        ("`totl` is not a column of Out that an aggregate may fill", "Did you mean `total`?"),
    ],
    "pipeline: aggregate into the key": [
        ("`shop` is not a column of Out that an aggregate may fill", "Out has total."),
    ],
    "pipeline: result of another type": [
        ("`total` is declared float; last gives str", "Declare it as str."),
    ],
    "pipeline: default of another type": [
        ("the default of `total` is 'none', which is no float", "Give a default of type float."),
    ],
    "pipeline: unknown group key": [
        ("groupby: there is no column `shp` in Sale", "Did you mean `shop`?"),
        ("groups are by `shp`, the key of Out is `shop`", "Write .groupby('shop'), or rename the key."),
    ],
    "pipeline: group key of another name": [
        ("groups are by `note`, the key of Out is `shop`", "Write .groupby('shop'), or rename the key."),
    ],
    "pipeline: group key of type float": [
        ("groupby: `shop` is float", "A key is one of bool, datetime, int, str."),
        ("groups are by float, the key `Out.shop` is str", "Give both one type."),
    ],
    "pipeline: filter on a number": [
        ("filter takes a condition; found float", "Compare it with something."),
    ],
    "pipeline: filter on an unknown column": [
        ("filter: there is no column `payd` in Sale", "Did you mean `paid`?"),
    ],
    "pipeline: comparison of text with a number": [
        ("filter: str is compared with int", "Compare values of one type."),
    ],
    "pipeline: arithmetic on text": [
        ("assign(twice): arithmetic (mul) on str", "concat(…) joins texts."),
    ],
    "pipeline: where on an unknown column": [
        ("`total`: where: there is no column `payed` in Sale", "Did you mean `paid`?"),
    ],
    "pipeline: lambda as filter": [
        (
            "filter() takes a function of a module over one frame; found a lambda",
            "Define it with def at the top of the",
        ),
    ],
    "pipeline: no aggregate class": [
        ("`total` is not an aggregate; found str 'sum'", "Use one of Count, Sum, Avg, Min, Max,"),
    ],
    "pipeline: column nobody fills": [
        ("the output column `more` is filled by no aggregate", "Aggregate it, or leave the column out."),
    ],
    "pipeline: nothing returned": [
        ("the body returned None", "Return the chain that ends in .aggregate(…)."),
    ],
    "pipeline: no aggregate": [
        ("the pipeline neither aggregates nor keeps a row per key", "End it with .groupby(…).aggregate(…),"),
    ],
    "pipeline: no group key": [
        ("aggregate() has no group key", "Write .groupby(<the output dataset's key>)"),
    ],
    "pipeline: no inputs": [
        ("the pipeline names no input", "Write @inputs(SomeDataset) below"),
    ],
    "pipeline: input that is no dataset": [
        ("@inputs takes datasets; found the class str", "Decorate it with @dataset(…)."),
    ],
    "pipeline: body that takes nothing": [
        ("the body does not take Sale", "Write def p(cls, sale)."),
    ],
    "pipeline: input never used": [
        ("the input `Rate` is never used", "Join or unite it, or leave it out."),
    ],
    "pipeline: join on a column of another type": [
        ("join(Rate): `pieces` is int, the key `Rate.shop` is str", "Join columns of one type."),
    ],
    "pipeline: join that brings an unknown column": [
        ("join(Rate): there is no column `rte` in Rate", "Did you mean `rate`?"),
    ],
    "pipeline: join that overwrites": [
        ("join(Rate): the left side has a column `rate` already", "Name the columns to bring over with"),
    ],
    "pipeline: join with no dataset": [
        ("join() takes a dataset; found str 'Rate'", "Decorate it with @dataset(…)."),
    ],
    "pipeline: two pipelines into one dataset": [
        ("several pipelines fill it: p, q", "Give each an output dataset of its own."),
    ],
    "pipeline: pipeline without parentheses": [
        ("@pipeline is called", "Write @pipeline()."),
    ],
    "pipeline: backfill by text": [
        ("backfill= takes Backfill(since=…) or None; found str '2026-01-01'", "Leave it out to fold all history."),
    ],
    "pipeline: pipeline outside a dataset": [
        ("the pipeline belongs to no declared class", "Decorate its class with @dataset(…)."),
    ],
    "step: join that names its columns as one text": [
        ("join() takes a list of columns; found the text 'rate'", 'Write ["rate"].'),
    ],
    "step: transform by a lambda": [
        (
            "transform() takes a function of a module over one frame; found a lambda",
            "Define it with def at the top of the",
        ),
    ],
    "step: transform by a name": [
        ("transform() takes a function of a module over one frame; found str", "Define it with def at the top of the"),
    ],
    "step: transform by a coroutine": [
        (
            "transform() takes a function of a module over one frame; found `later`,",
            "Define it with def at the top of the",
        ),
    ],
    "step: transform by a function of two": [
        ("transform() takes a function of a module over one frame; found", "Define it with def at the top of the"),
    ],
    "step: filter by a closure": [
        (
            "filter() takes a function of a module over one frame; found the closure",
            "Define it with def at the top of the",
        ),
    ],
    "step: filter by a number": [
        ("filter() takes an expression or a function; found int 42", 'Write .filter(col("amount") > 0).'),
    ],
    "step: assigned list": [
        ("assign(twice=…) takes an expression or a constant; found list [1, 2]", 'Write col("…").'),
    ],
    "step: transform that gives an unknown type": [
        ("output_columns: complex is not a column type", "Supported are int, float, str, bool,"),
    ],
    "step: transform that gives a column of the platform": [
        ("transform: `__time`: names with two leading underscores belong to the", "Choose another name."),
    ],
    "step: column of a transform of another type": [
        ("`total`: sum of `band`, which is str", "sum takes decimal, float, int."),
    ],
    "step: rename of no column": [
        ("rename: there is no column `amout` in Sale", "Did you mean `amount`?"),
    ],
    "step: rename onto another column": [
        ("rename: 2 columns would be called `amount`", "Choose another name, or drop the other"),
    ],
    "step: rename of two to one": [
        ("rename: 2 columns would be called `n`", "Choose another name, or drop the other"),
    ],
    "step: column under its old name": [
        ("`total`: there is no column `amount` in Sale", "Sale has shop, value, pieces, paid, note,"),
    ],
    "step: select of no column": [
        ("select: there is no column `amonut` in Sale", "Did you mean `amount`?"),
    ],
    "step: select of a column twice": [
        ("select: `amount` is named 2 times", "Name it once."),
    ],
    "step: column that was not selected": [
        ("`total`: there is no column `amount` in Sale", "Sale has shop, pieces."),
    ],
    "step: drop of no column": [
        ("drop: there is no column `nothing` in Sale", "Sale has shop, amount, pieces, paid, note,"),
    ],
    "step: group key that was dropped": [
        ("groupby: there is no column `shop` in Sale", "Sale has amount, pieces, paid, note, tags,"),
    ],
    "step: dedup by no column": [
        ("dedup: there is no column `noteid` in Sale", "Did you mean `note`?"),
    ],
    "step: explode of text": [
        ("explode takes a list column; `note` is str", "Declare it as list[str], or leave explode"),
    ],
    "step: explode of no column": [
        ("explode: there is no column `tag` in Sale", "Did you mean `tags`?"),
    ],
    "step: column named by a number": [
        ("select() takes names of columns; found int 3", 'Write "amount" or SomeDataset.amount.'),
    ],
    "step: union of other columns": [
        (
            "union(Rate): only the left side has `amount`, `pieces`, `paid`, `note`,",
            "Rate has rate. Rename, assign or drop what",
        ),
        ("union(Rate): only the right side has `rate`", "Sale has amount, pieces, paid, note, tags."),
    ],
    "step: union of another type": [
        ("union(Visit): `amount` is float on the left and int on the right", "Give both one type."),
    ],
    "step: union of no dataset": [
        ("union() takes a dataset; found str 'Rate'", "Decorate it with @dataset(…)."),
    ],
    "step: mistake inside a union": [
        ("filter: there is no column `payd` in Sale", "Did you mean `paid`?"),
    ],
    "step: join within no duration": [
        ("within: '1 week' is not a duration", "Write within='7d'."),
    ],
    "step: join with steps on the right": [
        (
            "the right side of a join is a dataset as it is; found one with filter",
            "Give what you join a dataset and a pipeline",
        ),
    ],
    "step: join with a value that fades": [
        (
            "`Trend.recent` of the pipeline `trend` changes without an event: events",
            "Use Lifetime(), Tumbling(…) or Session(…)",
        ),
    ],
    "step: union with a value that fades": [
        (
            "`Trend.recent` of the pipeline `trend` changes without an event: events",
            "Use Lifetime(), Tumbling(…) or Session(…)",
        ),
    ],
    "step: continuous window that feeds another": [
        (
            "`part` feeds another step, and its value changes without an event:",
            "Use Lifetime(), Tumbling(…) or Session(…)",
        ),
    ],
    "step: hopping window that feeds another": [
        (
            "`part` feeds another step, and its value changes without an event:",
            "Use Lifetime(), Tumbling(…) or Session(…)",
        ),
    ],
    "step: shifted lifetime that feeds another": [
        (
            "`part` feeds another step, and its value changes without an event:",
            "Use Lifetime(), Tumbling(…) or Session(…)",
        ),
    ],
    "step: fading sum that feeds another": [
        (
            "`part` feeds another step, and its value changes without an event: its",
            "Use Lifetime(), Tumbling(…) or Session(…)",
        ),
    ],
    "step: two tumbling windows that feed another": [
        (
            "a tumbling window that feeds another step stands alone; found tumbling",
            "Give them one tumbling window, or none.",
        ),
    ],
    "step: aggregate without groups that feeds another": [
        ("groupby has no group key", "Write .groupby(…) before it."),
        ("groupby: there is no column `shop` in the aggregate", "the aggregate has part, at."),
    ],
    "step: column that is gone after an aggregate": [
        (
            "`total`: there is no column `amount` in the aggregate by shop, note",
            "the aggregate by shop, note has shop, note,",
        ),
    ],
    "step: aggregate named like its key": [
        ("`note` is a column already: what follows an aggregate has its keys and", "Choose another name."),
    ],
    "step: text that an aggregate gave, summed": [
        ("`total`: sum of `part`, which is str", "sum takes decimal, float, int."),
    ],
    "step: emit at another time": [
        ('emit is "on_change" or "on_event"; found str \'hourly\'', "Leave it out."),
    ],
    "step: latest row without the output column": [
        (
            "the output column `total` is not a column of the rows that latest()",
            "Sale has shop, amount, pieces, paid, note,",
        ),
    ],
    "step: latest row with a column of another type": [
        ("`total` is declared float; the rows hold str", "Declare it as str."),
    ],
    "step: first row of another group": [
        ("groups are by `note`, the key of Out is `shop`", "Write .groupby('shop'), or rename the key."),
    ],
    "step: latest row by no column": [
        ("groupby(…).latest: there is no column `shopp` in Sale", "Did you mean `shop`?"),
    ],
    "step: number compared with text after an aggregate": [
        ("filter: float is compared with str", "Compare values of one type."),
    ],
    "aggregate: last of no values": [
        ("the body raised ValidationError: k: Input should be greater than 0;", "The body runs once, as the class is"),
    ],
    "aggregate: percentile above 100": [
        ("the body raised ValidationError: pct: Input should be less than or", "The body runs once, as the class is"),
    ],
    "aggregate: quantile above 1": [
        (
            "the body raised ValidationError: q: Input should be less than or equal",
            "The body runs once, as the class is",
        ),
    ],
    "aggregate: half-life without a unit": [
        ("the body raised ValueError: '7' is not a duration", "The body runs once, as the class is"),
    ],
    "aggregate: stride beyond the size": [
        (
            "the body raised ValidationError: value: Value error, stride is longer",
            "The body runs once, as the class is",
        ),
    ],
    "aggregate: session of no gap": [
        ("the body raised TypeError: Session() needs gap=, a duration", "The body runs once, as the class is"),
    ],
    "aggregate: cap of no rows": [
        (
            "the body raised ValidationError: max_rows: Input should be greater than",
            "The body runs once, as the class is",
        ),
    ],
    "aggregate: column that is no name": [
        (
            "the body raised TypeError: Sum(of=…) takes a column's name or reference; found int 5",
            "The body runs once, as the class is",
        ),
    ],
    "aggregate: quantile of text": [
        ("`total`: quantile of `note`, which is str", "quantile takes decimal, float, int."),
    ],
    "aggregate: spread of a flag": [
        ("`total`: stddev of `paid`, which is bool", "stddev takes decimal, float, int."),
    ],
    "aggregate: distinct lists": [
        ("`total`: approx_distinct of `tags`, which is list[str]", "approx_distinct takes bool, datetime,"),
    ],
    "aggregate: first of nothing": [
        ("`total`: first names no column", 'Write of="…".'),
    ],
    "aggregate: most frequent as one number": [
        ("`total` is declared float; top_k gives list[float]", "Declare it as list[float]."),
    ],
    "aggregate: count as a default text": [
        ("the default of `total` is 'none', which is no float", "Give a default of type float."),
    ],
    "aggregate: list as the default of a number": [
        ("the default of `total` is (1.0,), which is no float", "Give a default of type float."),
    ],
    "aggregate: condition on a number": [
        ("`total`: where: int is compared with str", "Compare values of one type."),
    ],
    "chain: window of a chained aggregate": [
        (
            "`ShopStats.total_1d` of the pipeline `by_shop` changes without an",
            "Use Lifetime(), Tumbling(…) or Session(…)",
        ),
    ],
    "chain: column that a chained pipeline does not give": [
        (
            "`ShopStats.total_1d` of the pipeline `by_shop` changes without an",
            "Use Lifetime(), Tumbling(…) or Session(…)",
        ),
        ("`top`: there is no column `total_7d` in ShopStats", "Did you mean `total_1d`?"),
    ],
    "chain: united dataset that is not named": [
        ("the body raised NameError: name 'Undeclared' is not defined", "The body runs once, as the class is"),
    ],
    "chain: group keys that make no text": [
        ("several group keys make one text; the key `Out.shop` is int", "Declare it as str."),
    ],
    "featureset: ref and request": [
        ("a feature is looked up (ref=) or sent by the caller (request=True), not", "Leave one of them out."),
    ],
    "featureset: ref to no column": [
        ("ref= takes a dataset's column; found <class 'features.ShopStats'>", "Write ref=SomeDataset.column."),
    ],
    "featureset: ref of another type": [
        ("the feature is str, `ShopStats.total_1d` is float", "Declare it as float."),
    ],
    "featureset: default of another type": [
        ("the default 'a' is no float", "Give a default of type float."),
    ],
    "featureset: unknown type": [
        ("bytes is not a feature type", "Supported are int, float, str, bool,"),
    ],
    "featureset: no annotation": [
        ("the feature has no type", "Write `x: <type> = feature()`."),
    ],
    "featureset: value from nowhere": [
        ("nothing gives the feature a value", "Look it up (ref=), request it"),
    ],
    "featureset: id twice": [
        ("id=4 is used by x, y", "Ids are unique."),
    ],
    "featureset: entity of another type": [
        ("the entity id `shop` is int, the key of ShopStats is str", "Declare `shop` as str."),
    ],
    "featureset: no entity": [
        ("no feature is the entity id", "Begin with a bare one: `user: str ="),
    ],
    "featureset: look-up without index": [
        ("Sale keeps no index to look up in", "Write @dataset(index=True, …)."),
    ],
    "featureset: unknown input": [
        ("the input `total` is not a feature of F", "F has shop, x."),
    ],
    "featureset: unknown output": [
        ("the output `y` is not a feature of F", "F has shop, x."),
    ],
    "featureset: requested output": [
        ("`x` is sent by the caller; an extractor cannot compute it", "Leave out request=True, or the output."),
    ],
    "featureset: looked up and computed": [
        ("`x` is looked up and computed", "Leave one of them out."),
    ],
    "featureset: wrong parameters": [
        ("the function does not take 1 inputs after cls and ts", "Write def f(cls, ts, y)."),
    ],
    "featureset: async": [
        ("an extractor is a plain function", "Return the value; neither async nor yield."),
    ],
    "featureset: undefined name": [
        ("`undefined_factor` is not defined at the top of the module", "Define it there, or import it from an"),
    ],
    "featureset: look-up in the body": [
        (
            "`ShopStats` is a dataset that the extractor does not declare to depend",
            "Write @extractor(deps=[ShopStats]), or take",
        ),
    ],
    "featureset: look-up in the body without index": [
        ("Sale.lookup: Sale keeps no index to look up in", "Write @dataset(index=True, …)."),
    ],
    "featureset: unmarked extractor": [
        ("the method has extractor inputs or outputs but is no extractor", "Write @extractor above them."),
    ],
    "featureset: dependency on nothing": [
        ("deps: there is no dataset or featureset `Nothing`", "The commit has Sale, ShopStats, F."),
    ],
    "featureset: circle": [
        ("features are computed from themselves: F.x → F.y → F.x", "Cut it somewhere."),
    ],
    "featureset: input of an unknown featureset": [
        ("the input `Other.x` is of the unknown featureset `Other`", "The commit has F."),
    ],
    "featureset: dependency that is no list": [
        ("deps= takes a list of datasets and featuresets; found Sale", "Write deps=[SomeDataset]."),
    ],
    "featureset: decimals of no scale, a wrong one, and a scale without decimals": [
        ("a Decimal feature has 0 to 18 digits after the point; found scale=None", "Write feature(scale=2)."),
        ("a Decimal feature has 0 to 18 digits after the point; found scale=True", "Write feature(scale=2)."),
        ("scale= is for Decimal features; found int", "Leave it out, or declare the feature as Decimal."),
    ],
    "featureset: defaults that are no values of their types": [
        ("the default 1.239 is no decimal(2)", "Give a default of type decimal(2)."),
        ("the default nan is no float", "Give a default of type float."),
        ("the default 1000000000000000000000000000000 is no int", "Give a default of type int."),
        ("the default 'today' is no datetime", "Give a default of type datetime."),
        ("default= is a value of the feature's type; found a list", "Write a number, text or bool, or leave it out."),
    ],
    "featureset: unknown clock": [
        ("online_clock: Input should be 'wall' or 'event'; found 'sundial'", "Change it to what the message asks for."),
    ],
    "module: nothing but a syntax mistake": [
        ("invalid syntax", "Mend it: nothing of the module was read."),
    ],
    "module: a module that raises": [
        ("the module raised NameError: name 'undefined' is not defined", "Mend it: a module has to import before it"),
    ],
    "module: a wrong keyword": [
        (
            "the module raised TypeError: field() got an unexpected keyword argument",
            "Mend it: a module has to import before it",
        ),
    ],
}
