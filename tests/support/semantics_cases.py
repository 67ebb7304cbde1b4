"""What a golden case asks, by its kind: definitions to make, records to send, values to read."""

from __future__ import annotations

import io
import tokenize
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from featurelib.clock import SECOND, Instant, format_instant, parse_instant
from featurelib.engine.keys import key_text
from featurelib.windows import AnyWindow, Continuous, Hopping, Lifetime, Tumbling
from tests.support.semantics_modules import (
    COUNTED,
    ROW_ID,
    Features,
    Module,
    NotOffered,
    Output,
    Table,
    aggregate_text,
    aggregate_type,
    as_text,
    column_types,
    predicate_text,
    window_text,
)
from tests.support.semantics_platforms import Platform, Row, Session

Case = Mapping[str, Any]
Query = Mapping[str, Any]
Event = Mapping[str, Any]
CLOCK = "ts"
_ARRIVAL = (
    "arrived",
    "arrived_at",
    "arrival",
    "arrival_ts",
    "known_at",
    "created",
    "created_at",
    "ingested_at",
    "accepted_at",
)
"""Members of an event that say when it came; they are no columns."""


@dataclass
class Plan:
    """A case made ready: a module, arrivals in order as ``(dataset, record)``, and how a query is answered."""

    module: Module = field(default_factory=lambda: Module(""))
    arrivals: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    ask: Callable[[Session, Query], Row] = lambda _, __: {}
    visible: Callable[[Query], int] | None = None
    one_by_one: bool = False
    queries: Sequence[Query] = ()
    """In place of the case's, where those do not name a key."""
    told: list[Any] = field(default_factory=list)
    """Expectation violations told as records were sent."""


def planned(case: Case, platform: Platform) -> Plan:
    """A case made ready. Whatever is wrong here is a matter of the case's form, not of the platform.

    Raises:
        NotOffered: nothing of the case is.
    """
    kind = str(case["kind"])
    handler = _HANDLERS.get(kind)
    if handler is None:
        raise NotOffered(_REASONS.get(kind, f"the runner knows no kind {kind}"))
    return handler(case, platform)


def played(plan: Plan, queries: Sequence[Query], platform: Platform) -> list[Row]:
    """One row of found values per query: what each may know is sent first. A value may be a NotOffered.

    Raises:
        NotOffered: the platform refuses the definitions.
    """
    queries = plan.queries or queries
    session = platform.open(plan.module.text) if plan.module.parts else _NO_SESSION
    visible = plan.visible or (lambda query: _visible(query, plan))
    found: dict[int, Row] = {}
    sent = 0
    for place, query in sorted(enumerate(queries), key=lambda item: visible(item[1])):
        upto = visible(query)
        _send(session, plan, plan.arrivals[sent:upto])
        if upto > sent:
            session.settle()
        sent = max(sent, upto)
        found[place] = plan.ask(session, query)
    return [found[place] for place in range(len(queries))]


_NO_SESSION: Any = None
"""Stands for the session of a plan that sends nothing and reads nothing."""


def _send(session: Session, plan: Plan, arrivals: Sequence[tuple[str, dict[str, Any]]]) -> None:
    for dataset, group in groupby(arrivals, key=lambda arrival: arrival[0]):
        events = [_sent(event) for _, event in group]
        for part in [[event] for event in events] if plan.one_by_one else [events]:
            plan.told += session.send(dataset, part)


def _sent(event: Event) -> dict[str, Any]:
    """A record as it goes out: when it came is no column, an object in a column is text, an envelope stays one."""
    plain = {name: value for name, value in event.items() if name not in _ARRIVAL}
    return plain if _image(event) is not event else {name: as_text(value) for name, value in plain.items()}


def _visible(query: Query, plan: Plan) -> int:
    if "after_events" in query:
        return int(query["after_events"])
    if "known_at" in query:
        known = parse_instant(query["known_at"])
        return sum(_arrival(event) <= known for _, event in plan.arrivals)
    return len(plan.arrivals)


def _arrival(event: Event) -> Instant:
    """When an event came: what it says itself, else its event time."""
    name = next((name for name in _ARRIVAL if name in event), CLOCK)
    return parse_instant(event[name])


def _in_arrival_order(events: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    said = all(any(name in event for name in _ARRIVAL) for _, event in events)
    return sorted(events, key=lambda arrival: _arrival(arrival[1])) if said else events


# Aggregates of streams.

_KNOWN_SPEC = {
    "group_by", "aggs", "union", "decimal_fields", "max_lateness", "where", "filter", "id_field", "event_id",
    "table_key", "defaults", "explode", "dedup", "dedup_by", "join", "cdc", "gap", "skip_null",
}  # fmt: skip


@dataclass
class Stream:
    """Aggregates over a case's events, in the making."""

    case: Case
    module: Module
    spec: Mapping[str, Any]
    streams: dict[str, list[dict[str, Any]]]
    tables: list[Table] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    refused: dict[str, NotOffered] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        return list(self.spec["group_by"])

    def row_key(self, rows: Sequence[Event]) -> str:
        """The dataset's key: the group key, so that order and lateness are those of the group."""
        table_key = list(self.spec.get("table_key") or self.keys)
        single = len(table_key) == 1 and all(row.get(table_key[0]) is not None for row in rows)
        return table_key[0] if single and not isinstance(rows[0][table_key[0]] if rows else "", float) else ROW_ID

    def declare(self) -> None:
        """The raw datasets."""
        rows = [row for name, stream in self.streams.items() if name != self._right for row in stream]
        decimals = self.spec.get("decimal_fields", ())
        self.types = column_types(map(_image, rows), decimals, (*_ARRIVAL, CLOCK, "__deleted"))
        key = self.row_key([_image(row) for row in rows])
        for name, stream in self.streams.items():
            mine = self.types if name != self._right else column_types(stream, decimals, (*_ARRIVAL, CLOCK))
            own = key if name != self._right else str(self.spec["join"]["on"])
            if own != ROW_ID and mine.get(own) not in ("str", "int", "bool"):
                own = ROW_ID
            table = Table(
                self.module.name(name),
                mine,
                key=own,
                cdc=self._cdc(stream),
                event_id=self.spec.get("id_field") or self.spec.get("event_id") or "",
                max_lateness=self.spec.get("max_lateness") or "",
            )
            self.tables.append(table)
            self.module.add(table)

    @property
    def _right(self) -> str | None:
        join = self.spec.get("join")
        return str(join.get("right") or join["table"]) if join else None

    def _cdc(self, stream: Sequence[Event]) -> str:
        if any("op" in row and ("before" in row or "after" in row) for row in stream):
            return "debezium"
        return str(self.spec.get("cdc") or ("upsert" if self.spec.get("table_key") else "append"))

    def arrivals(self) -> list[tuple[str, dict[str, Any]]]:
        """Every record, with the key column it needs."""
        found = []
        for table, stream in zip(self.tables, self.streams.values(), strict=True):
            for place, row in enumerate(stream):
                found.append((table.name, self._keyed(dict(row), table, place)))
        return _in_arrival_order(found)

    def _keyed(self, row: dict[str, Any], table: Table, place: int) -> dict[str, Any]:
        if table.key != ROW_ID:
            return row
        names = self.spec.get("table_key") or self.keys
        for image in (row.get("before"), row.get("after")) if table.cdc == "debezium" else (row,):
            if image is not None:
                parts = [image.get(name) for name in names]
                image[ROW_ID] = f"row {place}" if None in parts else key_text(parts)
        return row

    def chain(self) -> str:
        """The pipeline up to its aggregate."""
        nodes = [place for place, name in enumerate(self.streams) if name != self._right]
        chain = f"node{nodes[0]}" + "".join(f".union(node{place})" for place in nodes[1:])
        if self.spec.get("filter") or self.spec.get("where"):
            chain += f".filter({predicate_text(self.spec.get('filter') or self.spec['where'])})"
        if self.spec.get("explode"):
            chain += f".explode({self.spec['explode']!r})"
            self.types[self.spec["explode"]] = self.types[self.spec["explode"]][5:-1]
        for by in (self.spec.get("dedup"), self.spec.get("dedup_by")):
            chain += f".dedup({', '.join(map(repr, [by] if isinstance(by, str) else by))})" if by else ""
        return chain + self._join()

    def _join(self) -> str:
        join = self.spec.get("join")
        if not join:
            return ""
        right = next(t for t in self.tables if t.name == self.module.name(str(self._right)))
        fields = list(join.get("fields") or [name for name in right.columns if name != right.key])
        self.types |= {name: right.columns[name] for name in fields}
        within = f", within={join['within']!r}" if join.get("within") else ""
        return f".join({right.name}, on={join['on']!r}, fields={fields!r}{within})"

    def aggregates(self, aggs: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, str]]:
        """Texts of what is offered, and result types; what is not is noted."""
        texts, types = [], {}
        for agg in aggs:
            try:
                text = aggregate_text(agg)
                types[agg["name"]] = aggregate_type(text, self.types)
                texts.append(f"{agg['name']}={text}")
            except NotOffered as reason:
                self.refused[agg["name"]] = reason
        return texts, types

    def output(self, chain: str, keys: Sequence[str], types: Mapping[str, str]) -> Output:
        """The output dataset, added to the module."""
        key_types = {name: self.types.get(name, "str") for name in keys}
        inputs = [table.name for table in self.tables]
        made = Output(self.module.name("out"), keys, key_types, types, inputs, chain)
        self.module.add(made)
        return made


def _image(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row inside a change."""
    if "op" in row and ("before" in row or "after" in row):
        return row.get("after") or row.get("before") or {}
    return row


def _stream(case: Case, platform: Platform, spec: Mapping[str, Any] | None = None) -> Stream:
    spec = spec or case["spec"]
    strange = set(spec) - _KNOWN_SPEC
    if strange:
        raise NotOffered(f"the runner does not know what {', '.join(sorted(strange))} in a spec means")
    streams = {name: [dict(row) for row in rows] for name, rows in case["events"].items()}
    made = Stream(case, Module(platform.prefix(case["id"])), spec, streams)
    made.declare()
    return made


Read = Callable[[Session, str, Instant], Row]


def _features(stream: Stream, output: Output, defaults: Mapping[str, Any] | None = None) -> Read:
    """How the outputs are read: as features, or, where a feature cannot have the type, as the dataset's row."""
    given = defaults or {}
    if any("decimal" in kind for kind in output.columns.values()):
        return lambda session, key, at: session.lookup(output.name, key, at)
    looked_up = {name: (output.name, name, kind, given.get(name)) for name, kind in output.columns.items()}
    made = Features(stream.module.name("features"), output.key, output.key_type, looked_up)
    stream.module.add(made)
    return lambda session, key, at: session.read(made.name, key, at)


def _aggregate(case: Case, platform: Platform) -> Plan:
    """Aggregates of one stream (or several with the same columns), read at instants."""
    stream = _stream(case, platform)
    chain = stream.chain()
    texts, types = stream.aggregates(stream.spec["aggs"])
    if not texts:
        raise next(iter(stream.refused.values()))
    grouped = f"{chain}.groupby({', '.join(map(repr, stream.keys))}).aggregate({', '.join(texts)})"
    read = _features(stream, stream.output(grouped, stream.keys, types), case["spec"].get("defaults"))
    return _read_plan(stream, read, stream.spec["aggs"])


def _read_plan(stream: Stream, read: Read, aggs: Sequence[Mapping[str, Any]]) -> Plan:
    counted = {agg["name"] for agg in aggs if agg["fn"] in COUNTED}
    dropped = stream.tables[0].name

    def ask(session: Session, query: Query) -> Row:
        found = read(session, _key(query, stream.keys), parse_instant(query["at"]))
        for name in counted & set(found):
            found[name] = len(found[name] or [])
        if "dropped" in query["expect"]:
            found["dropped"] = session.late(dropped)
        return {**found, **stream.refused}

    lateness = bool(stream.spec.get("max_lateness"))
    return Plan(stream.module, stream.arrivals(), ask, one_by_one=lateness)


def _key(query: Query, keys: Sequence[str]) -> str:
    return key_text([query["key"][name] for name in keys])


def _two_stage(case: Case, platform: Platform) -> Plan:
    """Aggregates of aggregates."""
    first, second = case["spec"]["stage1"], case["spec"]["stage2"]
    stream = _stream(
        case, platform, {k: v for k, v in first.items() if k != "group_by"} | {"group_by": second["group_by"]}
    )
    chain, keys = stream.chain(), []
    for key in first["group_by"]:
        name, assigned = _derived(key)
        chain += f".assign({name}={assigned})" if assigned else ""
        stream.types.setdefault(name, "str")
        keys.append(name)
    texts, types = stream.aggregates(first["aggs"])
    if stream.refused:
        raise next(iter(stream.refused.values()))
    chain += f".groupby({', '.join(map(repr, keys))}).aggregate({', '.join(texts)})"
    stream.types = {**{name: stream.types[name] for name in keys}, **types}
    texts, types = stream.aggregates(second["aggs"])
    chain += f".groupby({', '.join(map(repr, second['group_by']))}).aggregate({', '.join(texts)})"
    read = _features(stream, stream.output(chain, second["group_by"], types))
    return _read_plan(stream, read, second["aggs"])


_TRUNCATED = {"day": "1d", "hour": "1h", "minute": "1m", "week": "7d"}


def _derived(key: str) -> tuple[str, str]:
    """``day(ts)`` → a column of that name and the expression that gives it; a plain column has none."""
    function, _, rest = key.partition("(")
    if not rest:
        return key, ""
    if function not in _TRUNCATED:
        raise NotOffered(f"a group key cannot be {key}")
    return f"{function}_of", f"col({rest.rstrip(')')!r}).truncate({_TRUNCATED[function]!r}).to_str()"


def _latest_then_count(case: Case, platform: Platform) -> Plan:
    """A table of newest rows, aggregated."""
    spec = case["spec"]
    second = spec["stage2"]
    stream = _stream(case, platform, {"group_by": spec["table_key"], "aggs": []})
    chain = f"{stream.chain()}.groupby({', '.join(map(repr, spec['table_key']))}).latest()"
    if second.get("skip_null"):
        chain += f".filter(~col({spec['value']!r}).is_null())"
    texts, types = stream.aggregates(second["aggs"])
    chain += f".groupby({', '.join(map(repr, second['group_by']))}).aggregate({', '.join(texts)})"
    read = _features(stream, stream.output(chain, second["group_by"], types))
    plan = _read_plan(stream, read, second["aggs"])

    def ask(session: Session, query: Query) -> Row:
        found = read(session, _key(query, second["group_by"]), parse_instant(query["at"]))
        return {**found, **stream.refused}

    return replace(plan, ask=ask)


def _handoff(case: Case, platform: Platform) -> Plan:
    """The same events come twice, by a backfill and by a stream: both are sent to one dataset."""
    joined = [event for stream in case["events"].values() for event in stream]
    return _aggregate({**case, "events": {"e": joined}}, platform)


def _sessions(case: Case, platform: Platform) -> Plan:
    """All sessions: the newest at R, then the one before its first event, and so on."""
    spec = case["spec"]
    window = {"type": "session", "gap": spec["gap"]}
    names = [agg if isinstance(agg, str) else agg["fn"] for agg in spec["aggs"]]
    aggs = [{"name": fn, "fn": fn, "window": window, **({} if fn == "count" else {"of": spec["of"]})} for fn in names]
    edges = [
        {"name": name, "fn": name.split("_")[0], "of": CLOCK, "window": window} for name in ("first_of", "last_of")
    ]
    size = {"name": "size_of", "fn": "count", "window": window}
    stream = _stream(case, platform, {"group_by": spec["group_by"], "aggs": []})
    stream.types[CLOCK] = "datetime"
    texts, types = stream.aggregates([*aggs, *edges, size])
    chain = f"{stream.chain()}.groupby({', '.join(map(repr, stream.keys))}).aggregate({', '.join(texts)})"
    read = _features(stream, stream.output(chain, stream.keys, types))

    def ask(session: Session, query: Query) -> Row:
        found, at = [], parse_instant(query["at"])
        while (row := read(session, _key(query, stream.keys), at)).get("size_of"):
            first = parse_instant(row["first_of"])
            span = {"first": format_instant(first), "last": format_instant(parse_instant(row["last_of"]))}
            found.append(span | {name: row[name] for name in names if name in row})
            at = first - 1
        return {"sessions": found[::-1], **stream.refused}

    return replace(_read_plan(stream, read, aggs), ask=ask)


def _row_aggregate(case: Case, platform: Platform) -> Plan:
    """An aggregate up to a row, the row included: the rows before it in the total order are what it may know."""
    spec = case["spec"]
    if spec.get("exclude_current_time"):
        raise NotOffered(
            "a window takes every row of its instant: those of the request row's own time cannot be left out"
        )
    if spec.get("lower") == "open":
        raise NotOffered("windows are closed at both ends (decision 3)")
    strange = set(spec) - {
        "partition_by",
        "order_by",
        "of",
        "fn",
        "preceding",
        "lower",
        "max_rows",
        "exclude_current_time",
    }
    if strange or spec.get("order_by", CLOCK) != CLOCK:
        raise NotOffered(f"a window over rows has no {', '.join(sorted(strange)) or spec['order_by']}")
    (name,) = {name for query in case["queries"] for name in query["expect"]}
    agg = {"name": name, "fn": spec["fn"], "of": spec.get("of"), "window": _preceding(spec)}
    ((source, rows),) = case["events"].items()
    order = sorted(range(len(rows)), key=lambda place: (parse_instant(rows[place][CLOCK]), place))
    ordered = {**case, "events": {source: [rows[place] for place in order]}}
    stream = _stream(ordered, platform, {"group_by": spec["partition_by"], "aggs": []})
    texts, types = stream.aggregates([agg])
    chain = f"{stream.chain()}.groupby({', '.join(map(repr, stream.keys))}).aggregate({', '.join(texts)})"
    plan = _read_plan(stream, _features(stream, stream.output(chain, stream.keys, types)), [agg])
    return replace(plan, visible=lambda query: order.index(query["row"]) + 1)


def _preceding(spec: Mapping[str, Any]) -> dict[str, Any]:
    size, most = spec.get("preceding"), spec.get("max_rows")
    if isinstance(size, int):
        return {"type": "lifetime", "max_rows": min(size + 1, most or size + 1)}
    return {"type": "continuous", "size": size, "max_rows": most} if size else {"type": "lifetime", "max_rows": most}


def _merge(case: Case, platform: Platform) -> Plan:
    """Values of several tiles: a day apart from each other, so that they lie in panes of their own."""
    spec, query = case["spec"], case["queries"][0]
    start = parse_instant(query["at"])
    rows = [
        {"k": "all", "v": value, CLOCK: format_instant(start - (tile * 86_400 + place + 1) * SECOND)}
        for tile, values in enumerate(spec["tiles"])
        for place, value in enumerate(values["values"])
    ]
    names = [agg if isinstance(agg, str) else agg["fn"] for agg in spec["aggs"]]
    aggs = [
        {"name": fn, "fn": fn, "window": {"type": "lifetime"}, **({} if fn == "count" else {"of": "v"})} for fn in names
    ]
    queries = [{**each, "key": {"k": "all"}} for each in case["queries"]]
    made = _aggregate({**case, "spec": {"group_by": ["k"], "aggs": aggs}, "events": {"e": rows}}, platform)
    return replace(made, queries=queries)


def _sketch(case: Case, platform: Platform) -> Plan:
    """A sketch over made-up streams: each query's is a key of its own."""
    spec, rows, queries = case["spec"], [], []
    names = {name for query in case["queries"] for name in query["expect"]}
    options = {k: v for k, v in spec.items() if k != "fn"}
    aggs = [{"name": name, "fn": spec["fn"], "of": "v", "window": {"type": "lifetime"}, **options} for name in names]
    for place, query in enumerate(case["queries"]):
        values = [value for part in _parts(query["key"]) for value in part]
        before = parse_instant(query["at"]) - len(values) * 1_000
        for number, value in enumerate(values):
            rows.append({"k": f"s{place}", "v": value, CLOCK: format_instant(before + number * 1_000)})
        queries.append({**query, "key": {"k": f"s{place}"}})
    made = _aggregate({**case, "spec": {"group_by": ["k"], "aggs": aggs}, "events": {"e": rows}}, platform)
    return replace(made, queries=queries)


def _parts(key: Mapping[str, Any]) -> list[list[Any]]:
    strange = set(key) - {"stream", "merge"}
    if strange:
        raise NotOffered(f"the runner does not know what a sketch over {', '.join(sorted(strange))} is")
    found = []
    for part in [key["stream"]] if "stream" in key else key["merge"]:
        if isinstance(part, list):
            found.append(part)
            continue
        if set(part) - {"range", "repeat"}:
            raise NotOffered(f"the runner does not know the stream {part}")
        found.append([value for _ in range(part.get("repeat", 1)) for value in range(*part["range"])])
    return found


def _mutations(case: Case, platform: Platform) -> Plan:
    """A table whose rows are corrected later: versions of the same row, sent when they became known."""
    spec = case["spec"]
    key, of = spec["key"], spec["of"]
    agg = {"name": spec["fn"], "fn": spec["fn"], "of": of, "window": spec["window"]}
    live: dict[Any, list[str]] = {}
    known: list[tuple[Instant | None, Event]] = [(None, row) for row in case["events"].get("snapshot", [])]
    known += [(parse_instant(m["mutation_ts"]), m) for m in case["events"].get("mutations", [])]
    records: list[tuple[Instant | None, dict[str, Any]]] = []
    for at, row in known:
        image = (row[key], row["ts"], row[of])
        row_id = live[image].pop() if row.get("is_before") and live.get(image) else ""
        if row.get("is_before"):
            # A before image is taken away; an after image of the same row that follows takes its place.
            live.setdefault(("freed", row[key], row["ts"], at), []).append(row_id)
            record = {key: row[key], of: row[of], CLOCK: row["ts"], ROW_ID: row_id, "__deleted": True}
        else:
            freed = live.get(("freed", row[key], row["ts"], at)) or []
            row_id = freed.pop() if freed else f"row {len(records)}"
            live.setdefault(image, []).append(row_id)
            record = {key: row[key], of: row[of], CLOCK: row["ts"], ROW_ID: row_id}
        records.append((at, record))
    times = [at for at, _ in records]
    return _mutated(case, platform, agg, [record for _, record in records], times)


def _mutated(
    case: Case, platform: Platform, agg: Mapping[str, Any], records: list[dict[str, Any]], times: list[Instant | None]
) -> Plan:
    module, key = Module(platform.prefix(case["id"])), case["spec"]["key"]
    types = column_types(records, (), (CLOCK, ROW_ID, "__deleted"))
    table = Table(module.name("rows"), types, cdc="upsert")
    module.add(table)
    text = aggregate_text(agg)
    chain = f"node0.groupby({key!r}).aggregate({agg['name']}={text})"
    output = Output(module.name("out"), [key], types, {agg["name"]: aggregate_type(text, types)}, [table.name], chain)
    module.add(output)
    looked_up = {name: (output.name, name, kind, None) for name, kind in output.columns.items()}
    features = Features(module.name("features"), output.key, output.key_type, looked_up)
    module.add(features)

    def ask(session: Session, query: Query) -> Row:
        return session.read(features.name, str(query["key"][key]), parse_instant(query["at"]))

    def visible(query: Query) -> int:
        at = parse_instant(query["at"])
        return sum(time is None or time <= at for time in times)

    arrivals = [(table.name, record) for record in records]
    return Plan(module, arrivals, ask, visible)


# Tables read by key.


def _tables(case: Case, platform: Platform, tables: Sequence[Mapping[str, Any]]) -> Plan:
    module = Module(platform.prefix(case["id"]))
    arrivals, reads = [], []
    for table in tables:
        strange = set(table) - {"name", "table", "key", "value", "values", "default", "cdc"}
        if strange:
            raise NotOffered(f"a look-up has no {', '.join(sorted(strange))}")
        source = str(table.get("name") or table["table"])
        rows = [dict(row) for row in case["events"][source]]
        keys, values = list(table["key"]), [table["value"]] if "value" in table else list(table["values"])
        types = column_types(rows, (), (*_ARRIVAL, CLOCK, "__deleted"))
        key = keys[0] if len(keys) == 1 and types[keys[0]] in ("str", "int", "bool") else ROW_ID
        for row in rows:
            if key == ROW_ID:
                row[ROW_ID] = key_text([row[name] for name in keys])
        made = Table(module.name(source), types, key=key, index=True, cdc=str(table.get("cdc") or "append"))
        module.add(made)
        arrivals += [(made.name, row) for row in rows]
        looked_up = {f"{name}_of": (made.name, name, types[name], table.get("default")) for name in values}
        features = Features(module.name(f"{source}_features"), f"{key}_id", types.get(key, "str"), looked_up)
        module.add(features)
        reads.append((features.name, keys, values))

    def ask(session: Session, query: Query) -> Row:
        found: Row = {}
        at = parse_instant(query["at"])
        for name, keys, values in reads:
            wanted = query["key"].get("ids")
            texts = [str(each) for each in wanted] if wanted is not None else [_key(query, keys)]
            rows = [session.read(name, text, at) for text in texts]
            if wanted is not None:
                found["values"] = [row[f"{values[0]}_of"] for row in rows]
            else:
                found |= {value: rows[0].get(f"{value}_of") for value in values}
        return found

    return Plan(module, _in_arrival_order(arrivals), ask)


def _lookup(case: Case, platform: Platform) -> Plan:
    """The newest row of a table at an instant."""
    return _tables(case, platform, [case["spec"]])


def _pit_join(case: Case, platform: Platform) -> Plan:
    """Each row of a spine with the newest row of several tables."""
    strange = set(case["spec"]) - {"spine", "tables"}
    if strange:
        raise NotOffered(f"the runner does not know what {', '.join(sorted(strange))} in a spec means")
    return _tables(case, platform, case["spec"]["tables"])


# Windows alone: what their bounds say.


def _window_bounds(case: Case, platform: Platform) -> Plan:
    """First and last instant of a window at R."""
    del platform
    _window({**case["spec"], **case["queries"][0]["key"]})  # refused here, once, where there is no such window

    def ask(_: Session, query: Query) -> Row:
        key = {k: v for k, v in query["key"].items() if k in ("size", "stride", "offset", "gap", "lookback")}
        bounds = _window({**case["spec"], **key}).bounds(parse_instant(query["at"]))
        start = format_instant(bounds.low) if bounds.low is not None else None
        end, after = format_instant(bounds.high), format_instant(bounds.high + 1)
        return {"start": start, "end": end, "end_inclusive": end, "end_exclusive": after}

    return Plan(ask=ask)


def _window_ends(case: Case, platform: Platform) -> Plan:
    """The ends of the windows that hold an event: those whose bounds, read as they close, hold it."""
    del platform
    window = _window(case["spec"])
    if not isinstance(window, Hopping | Tumbling):
        raise NotOffered("only tumbling and hopping windows have ends")
    stride = window.stride_us if isinstance(window, Hopping) else window.size_us

    def ask(_: Session, query: Query) -> Row:
        event, ends = parse_instant(query["at"]), []
        end = window.bounds(event).high + 1
        while end <= event + window.size_us + stride:
            bounds = window.bounds(end)
            if bounds.low is not None and bounds.low <= event <= bounds.high:
                ends.append(format_instant(end))
            end += stride
        return {"ends": ends}

    return Plan(ask=ask)


def _window(spec: Mapping[str, Any]) -> AnyWindow:
    kinds = {kind.__name__: kind for kind in (Continuous, Lifetime, Tumbling, Hopping)}
    try:
        made: AnyWindow = eval(window_text(spec), dict(kinds))  # our own text, in the SDK's names
    except (ValueError, TypeError, NameError) as error:
        raise NotOffered(f"there is no such window: {error}") from error
    return made


# Features.


def _extractor(case: Case, platform: Platform) -> Plan:
    """Extractors over looked-up values."""
    spec, module = case["spec"], Module(platform.prefix(case["id"]))
    ((source, rows),) = case["events"].items()
    types = column_types(rows, (), (*_ARRIVAL, CLOCK))
    key = str(spec["dataset_key"])
    table = Table(module.name(source), types, key=key, index=True)
    module.add(table)
    looked_up, lines = _extracted(spec["features"], table, types, sorted(_columns_wanted(spec["features"], types)))
    features = Features(module.name("features"), f"{key}_id", types[key], looked_up, "\n".join(lines))
    module.add(features)

    def ask(session: Session, query: Query) -> Row:
        return session.read(features.name, str(query["key"][key]), parse_instant(query["at"]))

    return Plan(module, [(table.name, dict(row)) for row in rows], ask)


def _columns_wanted(features: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> set[str]:
    named = {str(f["from"]).partition(":")[2] for f in features if "from" in f}
    return (
        named | {word for f in features for word in _words(str(f.get("expr", "")))} - {f["name"] for f in features}
    ) & set(types)


def _words(text: str) -> list[str]:
    return [
        word for word in "".join(c if c.isalnum() or c == "_" else " " for c in text).split() if word.isidentifier()
    ]


def _extracted(
    features: Sequence[Mapping[str, Any]], table: Table, types: Mapping[str, str], columns: Sequence[str]
) -> tuple[dict[str, tuple[str, str, str, Any]], list[str]]:
    """Looked-up features, and the lines of extracted ones."""
    own = {
        f["name"]: str(f["from"]).partition(":")[2] for f in features if str(f.get("from", "")).startswith("lookup:")
    }
    looked_up = {name: (table.name, column, types[column], None) for name, column in own.items()}
    by_column = {column: name for name, column in own.items()}
    for column in columns:
        if column not in by_column:
            by_column[column] = f"{column}_in"
            looked_up[by_column[column]] = (table.name, column, types[column], None)
    lines, bodies = [], []
    for feature in features:
        name = feature["name"]
        if name in own:
            continue
        inputs, body, kind = _body(feature, by_column, [f["name"] for f in features])
        lines.append(f"    {name}: Optional[{kind}] = feature()")
        signature = ", ".join(["cls", "ts", *(f"a{place}" for place in range(len(inputs)))])
        bodies += [
            "", "    @extractor", f"    @extractor_inputs({', '.join(map(repr, inputs))})",
            f"    @extractor_outputs({name!r})", f"    def make_{name}({signature}):", f"        return {body}",
        ]  # fmt: skip
    return looked_up, [*lines, *bodies]


def _body(feature: Mapping[str, Any], by_column: Mapping[str, str], names: Sequence[str]) -> tuple[list[str], str, str]:
    """Inputs, expression over ``a0, a1, …`` and type of an extracted feature."""
    if "expr" in feature:
        words = list(dict.fromkeys(w for w in _words(feature["expr"]) if w in names or w in by_column))
        text = " ".join(
            f"a{words.index(token)}" if token in words else token for token in _tokens(str(feature["expr"]))
        )
        kind = "float" if "/" in feature["expr"] or "." in feature["expr"] else "int"
        return [word if word in names else by_column[word] for word in words], text, kind
    how, _, column = str(feature["from"]).partition(":")
    if how == "map":
        values = [*feature["map"].values(), feature.get("else")]
        kind = type(next(value for value in values if value is not None)).__name__
        return [by_column[column]], f"{feature['map']!r}.get(a0, {feature.get('else')!r})", kind
    if how == "in":
        return [by_column[column]], f"a0 in {feature['values']!r}", "bool"
    raise NotOffered(f"the runner does not know a feature from {how}")


def _tokens(text: str) -> list[str]:
    found = tokenize.generate_tokens(io.StringIO(text).readline)
    return [token.string for token in found if token.string.strip()]


def _batch_query(case: Case, platform: Platform) -> Plan:
    """Many keys in one request."""
    return _lookup(case, platform)


# Quality.

_RULES = {
    "between": lambda e: f"expect_column_values_to_be_between({e['column']!r}, {e.get('min')!r}, {e.get('max')!r}",
    "not_null": lambda e: f"expect_column_values_to_not_be_null({e['column']!r}",
    "in_set": lambda e: f"expect_column_values_to_be_in_set({e['column']!r}, {e['values']!r}",
    "of_type": lambda e: f"expect_column_values_to_be_of_type({e['column']!r}, {e['type_name']!r}",
}
_RULE_NAMES = {
    "column_values_between": "between",
    "column_values_not_null": "not_null",
    "column_values_in_set": "in_set",
    "column_values_of_type": "of_type",
}


def _expectations(case: Case, platform: Platform) -> Plan:
    """What expectations say of raw records, and that all records are kept."""
    rules = []
    for rule in case["spec"]["expectations"]:
        if rule["type"] not in _RULES:
            raise NotOffered(f"there is no expectation {rule['type']}")
        mostly = f", mostly={rule['mostly']!r}" if "mostly" in rule else ""
        rules.append(f"{_RULES[rule['type']](rule)}{mostly})")
    ((source, records),) = case["events"].items()
    at = parse_instant(case["queries"][0]["at"])
    rows = [{"everything": "all", **dict(row), CLOCK: row.get(CLOCK) or format_instant(at)} for row in records]
    module = Module(platform.prefix(case["id"]))
    # A text among numbers is a raw value of a number's column.
    types = column_types([{k: v for k, v in row.items() if not _numeric_text(v)} for row in rows], (), (CLOCK,))
    table = Table(module.name(source), types, key="everything", expectations=tuple(rules))
    module.add(table)
    chain = 'node0.groupby("everything").aggregate(stored=Count())'
    output = Output(module.name("out"), ["everything"], types, {"stored": "int"}, [table.name], chain)
    module.add(output)
    features = Features(module.name("features"), "everything", "str", {"stored": (output.name, "stored", "int", None)})
    module.add(features)
    plan = Plan(module, [(table.name, row) for row in rows])

    def ask(session: Session, _: Query) -> Row:
        told = Counter(f"{_RULE_NAMES.get(v.expectation_type, v.expectation_type)}:{v.column}" for v in plan.told)
        stored = session.read(features.name, "all", at)["stored"]
        return {"violations": dict(told) or session.violations(table.name), "stored": stored}

    plan.ask = ask
    return plan


def _numeric_text(value: Any) -> bool:
    return isinstance(value, str) and value.replace(".", "", 1).lstrip("-").isdigit()


_HANDLERS: dict[str, Callable[[Case, Platform], Plan]] = {
    "aggregate": _aggregate,
    "cdc": _aggregate,
    "watermark": _aggregate,
    "feature_defaults": _aggregate,
    "handoff": _handoff,
    "two_stage": _two_stage,
    "latest_then_count": _latest_then_count,
    "sessions": _sessions,
    "row_aggregate": _row_aggregate,
    "merge": _merge,
    "sketch": _sketch,
    "mutations": _mutations,
    "lookup": _lookup,
    "pit_join": _pit_join,
    "window_bounds": _window_bounds,
    "window_ends": _window_ends,
    "extractor": _extractor,
    "batch_query": _batch_query,
    "expectations": _expectations,
}
_REASONS = {
    "interval_join": "a join is as-of (decision 14): there is no join whose rows are validity intervals",
    "scripted": "a script of sends and waits in wall-clock time: sources do not end by idleness",
    "schema_steps_data": "the spec tells its pipelines in words",
    "drift": "the platform does not compare distributions of feature values",
}
