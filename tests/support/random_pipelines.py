"""Random worlds: datasets, a pipeline over them, accepted records, and reads at and around every edge.

``world(seed)`` is a function of its seed alone. A world that fails is made small by :func:`shrunk` and printed by
:func:`described`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, NamedTuple

from featurelib import aggregates as agg
from featurelib.aggregates import Aggregate
from featurelib.clock import DAY, HOUR, MINUTE, format_instant
from featurelib.definitions import (
    AggregateStep,
    AssignStep,
    ConnectorDef,
    DatasetDef,
    DedupStep,
    Definitions,
    DropStep,
    ExplodeStep,
    FieldDef,
    FilterCodeStep,
    FilterStep,
    FirstStep,
    JoinStep,
    LatestStep,
    NamedAggregate,
    PipelineDef,
    PyCode,
    RenameStep,
    SelectStep,
    SourceDef,
    Step,
    TransformStep,
    UnionStep,
)
from featurelib.expr import Expr, Predicate, col, columns_of
from featurelib.windows import AnyWindow, Continuous, Hopping, Lifetime, Session, Tumbling
from tests.support.oracle import Oracle, Record, Twin
from tests.support.oracle_rows import by_key

T0 = 1_700_006_400 * 1_000_000
"""A midnight, so that whole hours of it are edges of tumbling and hopping windows."""
SPAN = 2 * DAY
_NUMBERS = ("int", "float", "decimal(2)")
_ORDERED = (*_NUMBERS, "str", "datetime")
_EVENT_COLUMNS: dict[str, str] = {
    "id": "str",
    "user": "str",
    "city": "str",
    "amount": "int",
    "price": "float",
    "cost": "decimal(2)",
    "paid": "bool",
    "tags": "list[str]",
    "at": "datetime",
}
_MAY_BE_NULL = ("city", "amount", "price", "cost", "paid", "tags")

TWINS: dict[str, Twin] = {
    "doubled": lambda row: row | {"double": None if row["price"] is None else row["price"] * 2},
    "cheap": lambda row: row if row["price"] is not None and row["price"] < 60 else None,
}
_CODES = {
    "doubled": (
        'import polars as pl\n\ndef doubled(frame):\n    return frame.with_columns(double=pl.col("price") * 2)\n'
    ),
    "cheap": 'import polars as pl\n\ndef cheap(frame):\n    return frame.filter(pl.col("price") < 60)\n',
}


class Read(NamedTuple):
    """One read: of a key at an instant; ``as_served`` sees only what was accepted by then."""

    key: str
    at: int
    as_served: bool = False


@dataclass(frozen=True)
class World:
    """Definitions, accepted records per dataset in arrival order, and reads."""

    seed: int
    definitions: Definitions
    records: Mapping[str, Sequence[Record]]
    reads: tuple[Read, ...]

    @property
    def pipeline(self) -> PipelineDef:
        """The pipeline that is read: the last one."""
        return self.definitions.pipelines[-1]

    @property
    def oracle(self) -> Oracle:
        return Oracle(self.pipeline, self.definitions, self.records, TWINS)

    @property
    def pairs(self) -> int:
        """(events, reads) pairs compared."""
        return sum(len(records) for records in self.records.values()) * len(self.reads)

    def expected(self) -> list[dict[str, Any] | None]:
        """What the oracle reads."""
        oracle, stream = self.oracle, self.oracle.served()
        return [
            oracle.read(read.key, read.at, accepted_by=read.at)
            if read.as_served
            else oracle.finish(stream, read.key, read.at)
            for read in self.reads
        ]

    def features(self) -> set[str]:
        """Names of what the pipeline uses: ``step:…``, ``window:…``, ``aggregate:…``, ``cdc:…``."""
        found = set()
        for pipeline in self.definitions.pipelines:
            found |= {f"step:{name}" for name in _step_names(pipeline.steps)}
            for step in pipeline.steps:
                for named in step.aggregates if isinstance(step, AggregateStep) else ():
                    found |= _aggregate_features(named.aggregate)
        if len(self.definitions.pipelines) > 1:
            found.add("step:chained")
        return found | {f"cdc:{source.cdc}" for source in self.definitions.sources}


def world(seed: int, *, events: int = 28, reads: int = 16) -> World:
    """The world of a seed. One in ten has ten times the events: enough for panes that split."""
    chosen = random.Random(seed)
    definitions = _Definer(chosen).definitions()
    events *= 10 if chosen.random() < 0.1 else 1
    records = _records(chosen, definitions, events)
    made = World(seed, definitions, records, ())
    return replace(made, reads=tuple(_reads(chosen, made, reads)))


class _Definer:
    """Draws a pipeline, keeping track of the columns it has."""

    def __init__(self, chosen: random.Random) -> None:
        self.random = chosen
        self.columns: dict[str, str] = dict(_EVENT_COLUMNS)
        self.clock = "at"
        self.joined = False
        self.unioned = False

    def definitions(self) -> Definitions:
        steps = [step for _ in range(self.random.choice((0, 1, 1, 2, 2, 3))) for step in self._step()]
        sources = tuple(self._source(name) for name in ("Event", "Rate", "Other"))
        datasets = [_event_dataset("Event"), _rate_dataset(), _event_dataset("Other")]
        pipelines = []
        if self.random.random() < 0.08:
            pipelines.append(self._chained(steps, datasets))
            steps = []
        last = self._last()
        rights = [step.right for step in steps if isinstance(step, JoinStep)]
        unions = [step.dataset for step in steps if isinstance(step, UnionStep)]
        first = pipelines[-1].output_dataset if pipelines else "Event"
        pipelines.append(
            PipelineDef(
                name="drawn",
                input_datasets=tuple(dict.fromkeys((first, *rights, *unions))),
                output_dataset="Out",
                steps=(*steps, last),
            )
        )
        datasets.append(_dataset("Out", self._keys(last.keys), self._outputs(last)))
        return Definitions(datasets=tuple(datasets), pipelines=tuple(pipelines), sources=sources)

    def _chained(self, steps: list[Step], datasets: list[DatasetDef]) -> PipelineDef:
        (upstream,) = self._totals()
        assert isinstance(upstream, AggregateStep)  # ids are text, so there is a key
        rights = [step.right for step in steps if isinstance(step, JoinStep)]
        unions = [step.dataset for step in steps if isinstance(step, UnionStep)]
        columns = {name: kind for name, kind in self.columns.items() if name not in (*upstream.keys, self.clock)}
        datasets.append(_dataset("Middle", self._keys(upstream.keys), columns))
        self.columns = {field.name: field.type for field in datasets[-1].fields}
        self.clock = "served_at"
        return PipelineDef(
            name="upstream",
            input_datasets=tuple(dict.fromkeys(("Event", *rights, *unions))),
            output_dataset="Middle",
            steps=(*steps, upstream),
        )

    def _source(self, dataset: str) -> SourceDef:
        # Only what the left side is decides whether its rows are taken back, so it draws all three evenly.
        cdc = self.random.choice(("append", "append", "upsert", "debezium"))
        return SourceDef(dataset=dataset, connector=ConnectorDef(type="files", config={"path": "x"}), cdc=cdc)

    def _step(self) -> list[Step]:
        makers: list[Callable[[], list[Step]]] = [
            self._filter,
            self._assign,
            self._rename,
            self._narrow,
            self._explode,
            self._join,
            self._join,
            self._union,
            self._dedup,
            self._table,
            self._table,
            self._totals,
            self._code,
        ]
        return self.random.choice(makers)()

    def _of_type(self, *kinds: str) -> list[str]:
        return sorted(name for name, kind in self.columns.items() if kind in kinds)

    def _predicate(self) -> Predicate:
        numbers, texts = self._of_type("int", "float"), self._of_type("str")
        found = []
        if numbers:
            found.append(self._compared(col(self.random.choice(numbers)), self.random.randrange(100)))
        if texts:
            found.append(col(self.random.choice(texts)) != self.random.choice("abcxyz"))
        if not found:
            return col(self.clock).is_null() | ~col(self.clock).is_null()
        if len(found) > 1 and self.random.random() < 0.4:
            return found[0] | ~found[1] if self.random.random() < 0.5 else found[0] & found[1]
        return self.random.choice(found)

    def _compared(self, column: Expr, to: int) -> Predicate:
        return self.random.choice((column > to, column <= to, column.fill_null(50) >= to))

    def _filter(self) -> list[Step]:
        return [FilterStep(predicate=self._predicate().node)]

    def _assign(self) -> list[Step]:
        numbers = self._of_type("int", "float")
        if not numbers:
            return self._filter()
        left, right = col(self.random.choice(numbers)), col(self.random.choice(numbers))
        drawn = self.random.choice(("sum", "share", "flag", "filled"))
        made = {
            "sum": left + right * 2 - 1,
            "share": left / (right - 10),
            "flag": left > right,
            "filled": left.fill_null(3) * 1,
        }[drawn]
        kinds = {self.columns[name] for name in columns_of(made.node)}
        self.columns["drawn"] = {"share": "float", "flag": "bool"}.get(drawn, "int" if kinds == {"int"} else "float")
        return [AssignStep(column="drawn", value=made.node)]

    def _rename(self) -> list[Step]:
        old = self.random.choice(sorted(set(self.columns) - {self.clock}))
        new = f"{old}_2"
        self.columns = {(new if name == old else name): kind for name, kind in self.columns.items()}
        return [RenameStep(columns=((old, new),))]

    def _narrow(self) -> list[Step]:
        keys = self._of_type("str")[:2]
        kept = [n for n in self.columns if n in keys or n == self.clock or self.random.random() < 0.7]
        gone = tuple(name for name in self.columns if name not in kept)
        self.columns = {name: self.columns[name] for name in kept}
        if not gone or self.random.random() < 0.5:
            return [SelectStep(columns=tuple(kept))]
        return [DropStep(columns=gone)]

    def _explode(self) -> list[Step]:
        lists = self._of_type("list[str]")
        if not lists:
            return self._filter()
        self.columns[lists[0]] = "str"
        return [ExplodeStep(column=lists[0])]

    def _join(self) -> list[Step]:
        on = [name for name in self._of_type("str") if name.startswith(("city", "user", "tags"))]
        if self.joined or not on:
            return self._filter()
        self.joined = True
        self.columns |= {"rate": "float", "level": "int"}
        within = self.random.choice((None, HOUR, 6 * HOUR))
        return [JoinStep(right="Rate", on=self.random.choice(on), fields=("rate", "level"), within_us=within)]

    def _union(self) -> list[Step]:
        if self.columns != _EVENT_COLUMNS or self.unioned:
            return self._filter()
        self.unioned = True
        steps = self._filter() if self.random.random() < 0.4 else []
        return [UnionStep(dataset="Other", steps=tuple(steps))]

    def _dedup(self) -> list[Step]:
        by = self._of_type("str", "int")
        return [DedupStep(by=tuple(self.random.sample(by, k=min(len(by), self.random.choice((1, 2))))))] if by else []

    def _table(self) -> list[Step]:
        keys = tuple(self._of_type("str")[:1])
        if not keys:
            return self._filter()
        return [LatestStep(keys=keys) if self.random.random() < 0.5 else FirstStep(keys=keys)]

    def _code(self) -> list[Step]:
        if self.columns.get("price") != "float":
            return self._filter()
        if self.random.random() < 0.5:
            return [FilterCodeStep(code=PyCode(entry_point="cheap", source=_CODES["cheap"]))]
        self.columns["double"] = "float"
        code = PyCode(entry_point="doubled", source=_CODES["doubled"])
        return [TransformStep(code=code, columns=(("double", "float"),))]

    def _totals(self) -> list[Step]:
        """An aggregate that feeds what follows."""
        texts = self._of_type("str")
        keys = tuple(self.random.sample(texts, k=min(len(texts), self.random.choice((1, 2)))))
        if not keys:
            return self._filter()
        windows: list[AnyWindow] = [Lifetime(), Lifetime(), Tumbling("6h"), Continuous("6h")]
        window = self.random.choice(windows)
        emit = "on_event" if isinstance(window, Continuous) else "on_change"
        named = [NamedAggregate(output="total_n", aggregate=agg.Count(window=window))]
        numbers = self._of_type("int", "float")
        if numbers:
            of = self.random.choice(numbers)
            kind = self.random.choice((agg.Sum, agg.Max, agg.Last))
            named.append(NamedAggregate(output="total_v", aggregate=kind(of=of, window=window)))
        outputs = {each.output: agg.result_type(each.aggregate, self.columns.get(each.aggregate.of)) for each in named}
        self.columns = {**{name: self.columns[name] for name in keys}, **outputs, self.clock: "datetime"}
        return [AggregateStep(keys=keys, aggregates=tuple(named), emit=emit)]

    def _last(self) -> Any:
        texts = self._of_type("str", "bool")
        keys = tuple(self.random.sample(texts, k=min(len(texts), self.random.choice((1, 1, 1, 2)))))
        drawn = self.random.random()
        if drawn < 0.07:
            return LatestStep(keys=keys)
        if drawn < 0.14:
            return FirstStep(keys=keys)
        count = self.random.choice((3, 4, 5))
        named = tuple(NamedAggregate(output=f"out_{i}", aggregate=self._aggregate()) for i in range(count))
        return AggregateStep(keys=keys, aggregates=named)

    def _outputs(self, last: Any) -> dict[str, str]:
        if isinstance(last, AggregateStep):
            return {n.output: agg.result_type(n.aggregate, self.columns.get(n.aggregate.of)) for n in last.aggregates}
        return {name: kind for name, kind in self.columns.items() if name not in (*last.keys, self.clock)}

    def _keys(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self.columns[name] for name in names}

    def _window(self) -> AnyWindow:
        return self.random.choice(
            (
                Lifetime(),
                Lifetime(offset="6h"),
                Lifetime(max_rows=3),
                Continuous("1h"),
                Continuous("6h"),
                Continuous("1d"),
                Continuous("6h", offset="1h"),
                Continuous("1d", max_rows=2),
                Tumbling("6h"),
                Tumbling("1h", offset="10m"),
                Hopping("6h", "2h"),
                Hopping("1d", "6h", offset="1h"),
                Hopping("6h", "1h", lookback="2h"),
                Session("30m"),
                Session("2h"),
            )
        )

    def _aggregate(self) -> Aggregate:
        kinds = [kind for kind in AGGREGATES if self._inputs(kind)]
        kind = self.random.choice(kinds)
        options: dict[str, Any] = {"window": self._window()}
        if self.random.random() < 0.25:
            options["where"] = self._predicate()
        options |= _OPTIONS.get(kind.__name__, _no_options)(self.random)
        of = self.random.choice(self._inputs(kind))
        result = agg.result_type(kind(of=of, **options), self.columns.get(of))
        if result in ("int", "float") and self.random.random() < 0.15:
            options["default"] = self.random.choice((None, -1 if result == "int" else -1.0))
        made: Aggregate = kind(of=of, **options)
        return made

    def _inputs(self, kind: type) -> list[str]:
        """Columns the aggregate takes; an empty name is a bare count."""
        if kind is agg.Count:
            return ["", *self._of_type("int", "str")]
        scalars = self._of_type("int", "float", "str", "bool", "datetime", "decimal(2)")
        return {
            "numbers": self._of_type(*_NUMBERS),
            "ordered": self._of_type(*_ORDERED),
            "marks": self._of_type("int", "str", "bool", "decimal(2)"),
            "any": scalars,
        }[_TAKES[kind.__name__]]


_TAKES = {
    "Sum": "numbers",
    "Avg": "numbers",
    "Min": "ordered",
    "Max": "ordered",
    "ApproxPercentile": "numbers",
    "Last": "any",
    "LastK": "any",
    "First": "any",
    "FirstK": "any",
    "Stddev": "numbers",
    "Variance": "numbers",
    "Distinct": "marks",
    "ApproxDistinct": "marks",
    "Quantile": "numbers",
    "ExpDecaySum": "numbers",
    "TopK": "marks",
}
AGGREGATES: list[Any] = [agg.Count, *(getattr(agg, name) for name in _TAKES if hasattr(agg, name))]
_OPTIONS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "LastK": lambda r: {"k": r.choice((1, 2, 5)), "dedup": r.random() < 0.5, "dropnull": r.random() < 0.5},
    "FirstK": lambda r: {"k": r.choice((1, 2, 5)), "dedup": r.random() < 0.5, "dropnull": r.random() < 0.5},
    "Last": lambda r: {"dropnull": r.random() < 0.5},
    "First": lambda r: {"dropnull": r.random() < 0.5},
    "TopK": lambda r: {"k": r.choice((1, 2))},
    "Quantile": lambda r: {"q": r.choice((0.0, 0.25, 0.5, 0.9, 1.0))},
    "ApproxPercentile": lambda r: {"pct": r.choice((None, None, 25.0, 50.0, 99.0))},
    "ExpDecaySum": lambda r: {"half_life": r.choice(("1h", "6h"))},
}


def _no_options(_: random.Random) -> dict[str, Any]:
    return {}


def _dataset(name: str, keys: Mapping[str, str], columns: Mapping[str, str]) -> DatasetDef:
    """An output dataset: composite keys make one text."""
    ((key, kind),) = keys.items() if len(keys) == 1 else [("group", "str")]
    fields = [FieldDef(name=key, type=kind, key=True)]
    fields += [FieldDef(name=column, type=kind, optional=True) for column, kind in columns.items()]
    clock = FieldDef(name="served_at", type="datetime", timestamp=True)
    return DatasetDef(name=name, fields=(*fields, clock), index=True)


def _event_dataset(name: str) -> DatasetDef:
    fields = (
        FieldDef(name=c, type=kind, key=c == "id", timestamp=c == "at", optional=c in _MAY_BE_NULL)
        for c, kind in _EVENT_COLUMNS.items()
    )
    return DatasetDef(name=name, fields=tuple(fields))


def _rate_dataset() -> DatasetDef:
    return DatasetDef(
        name="Rate",
        fields=(
            FieldDef(name="place", type="str", key=True),
            FieldDef(name="rate", type="float"),
            FieldDef(name="level", type="int", optional=True),
            FieldDef(name="at", type="datetime", timestamp=True),
        ),
    )


def _records(chosen: random.Random, definitions: Definitions, events: int) -> dict[str, list[Record]]:
    """Accepted records of every raw dataset, over one arrival clock."""
    arrivals = ["Event"] * events + ["Rate"] * (events // 4)
    if any(isinstance(s, UnionStep) for pipeline in definitions.pipelines for s in pipeline.steps):
        arrivals += ["Other"] * (events // 3)
    chosen.shuffle(arrivals)
    made: dict[str, list[Record]] = {"Event": [], "Rate": [], "Other": []}
    offsets: dict[tuple[str, int], int] = {}
    accepted, times = T0, [T0 + HOUR]
    for name in arrivals:
        accepted += chosen.choice((0, 0, MINUTE, 90 * MINUTE))
        time = _time(chosen, times) if name != "Rate" or chosen.random() < 0.5 else _before(chosen, times)
        times.append(time)
        record = _event(chosen, time) if name != "Rate" else _rate(chosen, time)
        source = definitions.source(name)
        versioned = source is not None and source.cdc != "append"
        partition = sum(map(ord, record["place" if name == "Rate" else "id"])) % 2
        offset = offsets[name, partition] = offsets.get((name, partition), -1) + 1
        made[name].append(
            record
            | {
                "__time": time,
                "__accepted_at": accepted,
                "__partition": partition,
                "__offset": offset,
                "__late": chosen.random() < 0.05,
                "__deleted": versioned and chosen.random() < 0.15,
            }
        )
    return made


def _time(chosen: random.Random, before: Sequence[int]) -> int:
    """An event time: on the grid of windows, beside or tied with an earlier one, a gap after it, or anywhere."""
    drawn = chosen.random()
    if drawn < 0.3:
        return T0 + chosen.randrange(SPAN // HOUR) * HOUR
    if drawn < 0.5:
        return chosen.choice(before) + chosen.choice((0, 0, -1, 1))
    if drawn < 0.7:
        return chosen.choice(before) + chosen.choice((30 * MINUTE, HOUR, 2 * HOUR, 6 * HOUR)) + chosen.choice((0, 1))
    return T0 + chosen.randrange(SPAN)


def _before(chosen: random.Random, times: Sequence[int]) -> int:
    """A right record's time: as old as a join may allow, as seen from an event."""
    return chosen.choice(times) - chosen.choice((0, HOUR, 6 * HOUR)) + chosen.choice((0, 0, 0, -1, 1))


def _event(chosen: random.Random, time: int) -> dict[str, Any]:
    def maybe(value: Any) -> Any:
        return None if chosen.random() < 0.15 else value

    return {
        "id": f"i{chosen.randrange(10)}",
        "user": chosen.choice("abc"),
        "city": maybe(chosen.choice("xyz")),
        "amount": maybe(chosen.choice((-3, 0, 1, 7, chosen.randrange(100)))),
        "price": maybe(round(chosen.uniform(-5, 100), 2)),
        "cost": maybe(Decimal(chosen.randrange(-500, 9_999)) / 100),
        "paid": maybe(chosen.random() < 0.5),
        "tags": maybe([chosen.choice("ab:") for _ in range(chosen.choice((0, 1, 2, 12)))]),
        "at": time,
    }


def _rate(chosen: random.Random, time: int) -> dict[str, Any]:
    level = None if chosen.random() < 0.2 else chosen.randrange(100)
    return {"place": chosen.choice("xyzab"), "rate": chosen.randrange(100) / 4, "level": level, "at": time}


def _reads(chosen: random.Random, made: World, count: int) -> Iterator[Read]:
    """Reads of known keys and a few unknown ones, most of them on an edge or a microsecond beside it."""
    groups = by_key(made.oracle.served().rows, made.pipeline.keys)
    rows = [(key, row) for key, found in sorted(groups.items()) for row in found]
    edges = [0, 0, *sorted(_edges(made.pipeline))]
    for _ in range(count):
        if not rows or chosen.random() < 0.05:
            yield Read(_unknown_key(made), T0 + chosen.randrange(SPAN))
            continue
        key, row = chosen.choice(rows)
        at = chosen.choice((row.time, row.until or row.time)) + chosen.choice(edges) + chosen.choice((0, 0, -1, 1))
        if chosen.random() < 0.2:
            at = T0 + chosen.randrange(3 * SPAN // HOUR) * HOUR + chosen.choice((0, -1, 1))
        yield Read(key, at, as_served=chosen.random() < 0.15)


def _unknown_key(made: World) -> str:
    """A key of the output's type; there are so few bools that it may be known."""
    output = made.definitions.dataset(made.pipeline.output_dataset)
    assert output is not None
    return "false" if output.key.type == "bool" else ":".join(["nobody"] * len(made.pipeline.keys))


def _edges(pipeline: PipelineDef) -> set[int]:
    """Distances between an event and the reads at which a window of the pipeline lets it go."""
    last = pipeline.last_step
    windows = [named.aggregate.window for named in last.aggregates] if isinstance(last, AggregateStep) else []
    found = set()
    for window in windows:
        sizes = window.model_dump()
        durations = [value for name, value in sizes.items() if name.endswith("_us") and value]
        found |= {*durations, sum(durations)}
    return found


def _step_names(steps: Sequence[Step]) -> set[str]:
    found = set()
    for place, step in enumerate(steps):
        last = place == len(steps) - 1
        emits = isinstance(step, AggregateStep) and not last
        within = isinstance(step, JoinStep) and step.within_us is not None
        found |= {step.op, *(["intermediate"] if emits else []), *(["within"] if within else [])}
        found |= {f"final_{step.op}"} if last and not isinstance(step, AggregateStep) else set()
    return found


def _aggregate_features(aggregate: Aggregate) -> set[str]:
    window = aggregate.window
    options = [name for name in ("offset_us", "max_rows", "lookback_us") if getattr(window, name, None)]
    found = {f"aggregate:{aggregate.type}", f"window:{window.kind}", *(f"window:{window.kind}:{o}" for o in options)}
    found |= {"option:where"} if aggregate.where is not None else set()
    return found | ({"option:default"} if aggregate.default is not None else set())


def shrunk(made: World, fails: Callable[[World], bool]) -> World:
    """A smaller world that still fails: reads, then records, steps and aggregates are left out one by one."""
    changed = True
    while changed:
        changed = False
        for smaller in _smaller(made):
            if fails(smaller):
                made, changed = smaller, True
                break
    return made


def _smaller(made: World) -> Iterator[World]:
    yield from (replace(made, reads=(read,)) for read in made.reads if len(made.reads) > 1)
    for name, records in made.records.items():
        for size in (len(records) // 2, len(records) // 4, 1):
            for start in range(0, len(records), size) if size else ():
                kept = [*records[:start], *records[start + size :]]
                yield replace(made, records={**made.records, name: kept})
    last = made.pipeline.steps[-1]
    for place in range(len(made.pipeline.steps) - 1):
        steps = made.pipeline.steps
        yield _with_steps(made, (*steps[:place], *steps[place + 1 :]))
    if isinstance(last, AggregateStep) and len(last.aggregates) > 1:
        for place in range(len(last.aggregates)):
            fewer = (*last.aggregates[:place], *last.aggregates[place + 1 :])
            yield _with_steps(made, (*made.pipeline.steps[:-1], last.model_copy(update={"aggregates": fewer})))


def _with_steps(made: World, steps: tuple[Step, ...]) -> World:
    pipelines = (*made.definitions.pipelines[:-1], made.pipeline.model_copy(update={"steps": steps}))
    *datasets, output = made.definitions.datasets
    if isinstance(steps[-1], AggregateStep):
        filled = {named.output for named in steps[-1].aggregates}
        fields = tuple(f for f in output.fields if f.key or f.timestamp or f.name in filled)
        output = output.model_copy(update={"fields": fields})
    changed = {"pipelines": pipelines, "datasets": (*datasets, output)}
    return replace(made, definitions=made.definitions.model_copy(update=changed))


def described(made: World) -> str:
    """The world as a person would want it on their screen."""
    lines = [f"seed {made.seed}"]
    for pipeline in made.definitions.pipelines:
        lines.append(f"pipeline over {pipeline.input_datasets}:")
        lines += [f"  {line}" for step in pipeline.steps for line in _step_lines(step)]
    lines += [f"cdc {source.dataset}: {source.cdc}" for source in made.definitions.sources]
    for name, records in made.records.items():
        lines += [f"{name}: {_shown(record)}" for record in records]
    lines += [f"read {read.key} at {format_instant(read.at)} as_served={read.as_served}" for read in made.reads]
    return "\n".join(lines)


def _step_lines(step: Step) -> list[str]:
    if not isinstance(step, AggregateStep):
        return [f"{step.op} {json.dumps(step.model_dump(mode='json', exclude={'op'}))}"]
    lines = [f"aggregate by {step.keys} emit={step.emit}"]
    for named in step.aggregates:
        window = repr(named.aggregate.window)
        given = named.aggregate.model_dump(mode="json", exclude={"type", "window"})
        options = {name: value for name, value in given.items() if value not in (None, "")}
        lines.append(f"  {named.output} = {named.aggregate.type} over {window} {json.dumps(options)}")
    return lines


def _shown(record: Record) -> str:
    instants = {"__time", "__accepted_at"}
    shown = {n: format_instant(v) if n in instants else v for n, v in record.items() if n != "at" and v is not False}
    return str(shown)
