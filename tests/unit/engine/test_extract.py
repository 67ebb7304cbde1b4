"""The extractor graph: order, calling convention, shapes, casts, and errors at the user's line."""

from __future__ import annotations

import pickle
import re
import textwrap
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from featurelib.definitions import (
    DatasetDef,
    Definitions,
    ExtractorDef,
    FeatureDef,
    FeaturesetDef,
    FieldDef,
    PyCode,
)
from featurelib.engine.extract import ExtractorGraph, Pause
from featurelib.engine.extractor import Inline, Runner, Wanted
from featurelib.engine.processes import Processes
from featurelib.engine.user_code import Guard, Limits
from featurelib.errors import DefinitionError, UserCodeError

AT = 1_772_366_400_000_000  # 2026-03-01T12:00:00Z
COUNTS = DatasetDef(
    name="Counts",
    index=True,
    fields=(
        FieldDef(name="who", type="str", key=True),
        FieldDef(name="n", type="int"),
        FieldDef(name="last", type="str"),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)


PATIENT = Limits(soft_s=20.0, hard_s=30.0)


@pytest.fixture(scope="module")
def inline() -> Iterator[Inline]:
    guard = Guard(PATIENT)
    yield Inline(guard)
    guard.close()


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    processes = Processes(PATIENT, count=1)
    yield processes
    processes.close()


@pytest.fixture(params=["inline", "processes"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Every test of what extractors mean runs in both isolation modes."""
    return request.getfixturevalue(request.param)


def code(source: str, line: int | None = 41) -> PyCode:
    source = textwrap.dedent(source).strip()
    name = next(part for part in source.split("def ")[-1].split("(")[:1])
    return PyCode(entry_point=name, source=source, file="features.py", line=line)


def extractor(
    name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], source: str, **more: object
) -> ExtractorDef:
    return ExtractorDef(name=name, inputs=inputs, outputs=outputs, code=code(source), **more)


def featureset(name: str, types: dict[str, str], *extractors: ExtractorDef) -> FeaturesetDef:
    features = tuple(FeatureDef(name=feature, type=kind) for feature, kind in types.items())
    return FeaturesetDef(name=name, features=features, extractors=extractors)


def compiled(definition: FeaturesetDef, *others: FeaturesetDef, runner: Runner) -> ExtractorGraph:
    definitions = Definitions(featuresets=(definition, *others), datasets=(COUNTS,))
    return ExtractorGraph.compile(definition, definitions, runner)


Run = Callable[..., dict[str, object]]
One = Callable[..., object]


@pytest.fixture
def run(runner: Runner) -> Run:
    """Runs a featureset on given values and gives all its features."""

    def run(definition: FeaturesetDef, *others: FeaturesetDef, at: int = AT, **given: object) -> dict[str, object]:
        graph = compiled(definition, *others, runner=runner)
        values = [given.get(slot.feature.name) for slot in graph.slots]
        assert graph.run(values, at, {}) is None
        return {slot.feature.name: values[slot.position] for slot in graph.slots if slot.featureset == definition.name}

    return run


@pytest.fixture
def one(run: Run) -> One:
    """Runs a function of one input `x` for its output `y`."""

    def one(
        source: str, *, output: str = "float", input_type: str = "float", value: object = 4.0, vectorized: bool = False
    ) -> object:
        made = extractor("f", ("x",), ("y",), source, vectorized=vectorized)
        return run(featureset("F", {"x": input_type, "y": output}, made), x=value)["y"]

    return one


def test_inputs_are_given_by_position_after_cls_and_ts(one):
    source = "def f(cls, ts, x): return (cls, ts)[0] or x * 2"
    assert one(source) == 8.0


def test_the_instant_is_an_aware_utc_datetime(one):
    assert one("def f(cls, ts, x): return ts", output="datetime") == AT
    assert one("def f(cls, ts, x): return ts.utcoffset().total_seconds() + ts.hour") == 12.0


MONEY = "struct[units: int, price: decimal(2), at: datetime, tags: dict[str, list[int]]]"


def money(units: int) -> dict[str, object]:
    return {"units": units, "price": Decimal("0.60"), "at": AT, "tags": {"a": [1, None]}}


@pytest.mark.parametrize("vectorized", [False, True])
def test_structs_and_maps_go_in_and_come_out_as_they_are(one, vectorized):
    source = "def f(cls, ts, x): return x"
    assert one(source, input_type=MONEY, output=MONEY, value=money(3), vectorized=vectorized) == money(3)
    assert one(source, input_type=MONEY, output=MONEY, value=None, vectorized=vectorized) is None
    counts = {"input_type": "dict[str, int]", "output": "dict[str, int]", "vectorized": vectorized}
    assert one(source, value={"a": 1, "b": None}, **counts) == {"a": 1, "b": None}
    assert one(source, value={}, **counts) == {}


def test_the_only_output_may_be_the_dict_itself_or_stand_under_its_name(one):
    bare = "def f(cls, ts, x): return {'a': x.units}"
    named = "def f(cls, ts, x): return {'y': {'a': x['units']}}"
    for source in (bare, named):
        assert one(source, input_type=MONEY, output="dict[str, int]", value=money(3)) == {"a": 3}


@pytest.mark.parametrize("word", ["a", "y"])
def test_a_map_whose_only_key_is_the_outputs_name_is_as_any_other(one, word):
    source = "def f(cls, ts, x): return {x: len(x)}"
    assert one(source, input_type="str", output="dict[str, int]", value=word) == {word: 1}
    assert one(source, input_type="str", output="struct[a: int, y: int]", value=word) == {"a": None, "y": None, word: 1}


def test_what_user_code_does_to_a_struct_changes_no_other_value(one):
    value = money(3)
    source = "def f(cls, ts, x):\n    x['tags']['a'].append(2)\n    x['tags']['b'] = []\n    return len(x.tags['a'])"
    assert one(source, input_type=MONEY, output="int", value=value) == 3
    assert value == money(3)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("{'units': 'x'}", "output 'y': units: 'x' is not an int"),
        ("{'unit': 1}", "output 'y': 'unit' is no member of the struct; it has units, price, at, tags"),
        ("7", "output 'y': 7 is not a struct of units, price, at, tags"),
        ("{'tags': {1: []}}", "output 'y': tags: 1 is not text, which the keys of a map are"),
    ],
)
def test_a_struct_that_does_not_fit_is_refused_by_its_path(one, returned, words):
    with pytest.raises(UserCodeError, match=re.escape(words)):
        one(f"def f(cls, ts, x): return {returned}", output=MONEY)


def test_a_member_that_a_struct_has_not_is_an_error_that_names_the_others(one):
    with pytest.raises(UserCodeError, match="no member 'unit'; it has units, price, at, tags"):
        one("def f(cls, ts, x): return x.unit", input_type=MONEY, value=money(3))


def test_a_single_parameter_called_inputs_takes_a_dict(one):
    assert one("def f(cls, ts, inputs): return inputs['x'] + len(inputs)") == 5.0


def test_a_datetime_input_is_a_datetime_and_so_is_one_returned(one):
    source = "def f(cls, ts, x): return x.replace(year=2027)"
    back = one(source, input_type="datetime", output="datetime", value=AT)
    assert back == int(datetime(2027, 3, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000


def test_a_missing_input_is_none(one):
    assert one("def f(cls, ts, x): return 1.0 if x is None else 0.0", value=None) == 1.0


@pytest.mark.parametrize("returned", ["{'a': 1, 'b': 'z'}", "(1, 'z')", "[1, 'z']"])
def test_several_outputs_come_as_a_dict_or_in_order(returned, run):
    definition = featureset(
        "F",
        {"x": "int", "a": "int", "b": "str"},
        extractor("f", ("x",), ("a", "b"), f"def f(cls, ts, x): return {returned}"),
    )
    assert run(definition, x=1) == {"x": 1, "a": 1, "b": "z"}


def test_no_inputs_are_fine(run):
    definition = featureset("F", {"x": "int", "y": "int"}, extractor("f", (), ("y",), "def f(cls, ts): return 3"))
    assert run(definition)["y"] == 3


@pytest.mark.parametrize(
    ("kind", "returned", "value"),
    [
        ("int", "3.0", 3),
        ("int", "True", None),
        ("int", "3.5", None),
        ("int", "'3'", None),
        ("int", "2 ** 63", None),
        ("int", "-2 ** 63", -(2**63)),
        ("int", "float('nan')", None),
        ("float", "3", 3.0),
        ("float", "True", None),
        ("float", "10 ** 400", None),
        ("str", "5", None),
        ("str", "'é'", "é"),
        ("bool", "1", None),
        ("bool", "x > 1", True),
        ("datetime", "'2026-03-01T12:00'", AT),
        ("datetime", "'soon'", None),
        ("list[int]", "(1, 2.0)", [1, 2]),
        ("list[int]", "[1, 'a']", None),
        ("list[int]", "5", None),
    ],
)
def test_what_is_returned_is_cast_without_loss_or_refused(kind, returned, value, one):
    source = (
        f"def f(cls, ts, x): return ({returned},)[0]"
        if kind != "list[int]"
        else f"def f(cls, ts, x): return {{'y': {returned}}}"
    )
    if value is None:
        with pytest.raises(UserCodeError, match="output 'y'"):
            one(source, output=kind)
    else:
        got = one(source, output=kind)
        assert got == value
        assert type(got) is type(value)


@pytest.mark.parametrize("returned", ["float('nan')", "float('inf')", "None"])
def test_no_number_is_null(returned, one):
    assert one(f"def f(cls, ts, x): return {returned}") is None


def test_a_numpy_scalar_is_its_python_value(one):
    for kind, returned, value in (
        ("int", "int64(4)", 4),
        ("float", "float32(0.5)", 0.5),
        ("bool", "bool_(True)", True),
    ):
        got = one(f"import numpy\ndef f(cls, ts, x): return numpy.{returned}", output=kind)
        assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("{'z': 1.0}", "missing: y; not declared: z"),
        ("{'y': 1.0, 'z': 1.0}", "not declared: z"),
        ("{}", "missing: y"),
    ],
)
def test_a_dict_with_other_names_is_refused(returned, said, one):
    with pytest.raises(UserCodeError, match=said):
        one(f"def f(cls, ts, x): return {returned}")


@pytest.mark.parametrize("returned", ["1", "(1,)", "(1, 2, 3)", "None"])
def test_several_outputs_of_another_shape_are_refused(returned, run):
    definition = featureset(
        "F",
        {"x": "int", "a": "int", "b": "int"},
        extractor("f", ("x",), ("a", "b"), f"def f(cls, ts, x): return {returned}"),
    )
    with pytest.raises(UserCodeError, match="expected a dict or a tuple of 2: a, b"):
        run(definition, x=1)


def test_an_error_names_the_users_line_and_function(one):
    source = """
        import math
        SCALE = 10

        def helper(x):
            return math.sqrt(x)

        def f(cls, ts, x):
            y = x * SCALE
            return helper(-y)
    """
    with pytest.raises(UserCodeError) as caught:
        one(source)
    # `def` stands on line 41 of the user's file; the call into the helper two lines below it.
    assert (caught.value.location, caught.value.function) == ("features.py:43", "F.f")
    assert "ValueError" in caught.value.message
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_inline_an_error_carries_the_users_own_lines(inline):
    definition = featureset("F", {"y": "float"}, extractor("f", (), ("y",), "def f(cls, ts):\n    return [][0]"))
    with pytest.raises(UserCodeError) as caught:
        compiled(definition, runner=inline).run([None], AT, {})
    assert "return [][0]" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(cls, ts, x): raise SystemExit(1)", "SystemExit"),
        ("def f(cls, ts, x): return f(cls, ts, x)", "RecursionError"),
        ("def f(cls, ts, x): return [][0]", "IndexError"),
        ("def f(cls, ts, x): return x.missing", "AttributeError"),
    ],
)
def test_whatever_user_code_raises_is_marked_as_theirs(source, said, one):
    with pytest.raises(UserCodeError, match=said):
        one(source)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(cls, ts, x: return 1", "SyntaxError"),
        ("import no_such_module\ndef f(cls, ts, x): return 1", "ModuleNotFoundError"),
        ("def f(cls, ts, x, y): return 1", "declares 1 inputs"),
        ("def f(cls, ts): return 1", "declares 1 inputs"),
        ("async def f(cls, ts, x): return 1", "async"),
    ],
)
def test_code_that_does_not_load_is_refused_when_the_graph_is_compiled(source, said, runner):
    definition = featureset("F", {"x": "float", "y": "float"}, extractor("f", ("x",), ("y",), source))
    with pytest.raises(UserCodeError, match=said):
        ExtractorGraph.compile(definition, Definitions(featuresets=(definition,)), runner)


def test_a_source_without_the_named_function_is_refused(runner):
    made = ExtractorDef(name="f", inputs=(), outputs=("y",), code=PyCode(entry_point="f", source="g = 1"))
    definition = featureset("F", {"x": "float", "y": "float"}, made)
    with pytest.raises(UserCodeError, match="defines no function 'f'"):
        ExtractorGraph.compile(definition, Definitions(featuresets=(definition,)), runner)


def test_extractors_run_after_those_they_take_from_each_once(run):
    definition = featureset(
        "F",
        {"x": "int", "a": "int", "b": "int", "c": "int", "calls": "int"},
        extractor("last", ("a", "b", "c"), ("calls",), "def last(cls, ts, a, b, c): return a + b + c"),
        extractor("second", ("a",), ("b", "c"), "def second(cls, ts, a): return a * 10, a * 100"),
        extractor(
            "first", ("x",), ("a",), "seen = []\ndef first(cls, ts, x):\n    seen.append(x)\n    return x + len(seen)"
        ),
    )
    assert run(definition, x=1) == {"x": 1, "a": 2, "b": 20, "c": 200, "calls": 222}


def test_an_input_of_another_featureset_is_computed_first_and_only_what_is_needed(run):
    other = featureset(
        "Other",
        {"x": "int", "d": "int", "unused": "int"},
        extractor("double", ("x",), ("d",), "def double(cls, ts, x): return x * 2"),
        extractor("fail", ("x",), ("unused",), "def fail(cls, ts, x): raise ValueError"),
    )
    definition = featureset(
        "F", {"x": "int", "y": "int"}, extractor("f", ("Other.d", "x"), ("y",), "def f(cls, ts, d, x): return d + x")
    )
    assert run(definition, other, x=3) == {"x": 3, "y": 9}


def test_a_dotted_input_answers_under_both_names_in_the_dict(run):
    other = featureset("Other", {"x": "int", "d": "int"})
    definition = featureset(
        "F",
        {"x": "int", "y": "int"},
        extractor("f", ("Other.d",), ("y",), "def f(cls, ts, inputs): return inputs['Other.d'] + inputs['d']"),
    )
    assert run(definition, other, d=4)["y"] == 8


@pytest.mark.parametrize(
    ("inputs", "said"), [(("b",), "take each other's outputs"), (("Nowhere.d",), "Nowhere"), (("none",), "F.none")]
)
def test_a_graph_that_does_not_fit_together_is_refused(inputs, said, runner):
    definition = featureset(
        "F",
        {"x": "int", "a": "int", "b": "int"},
        extractor("fa", inputs, ("a",), "def fa(cls, ts, v): return v"),
        extractor("fb", ("a",), ("b",), "def fb(cls, ts, v): return v"),
    )
    with pytest.raises(DefinitionError, match=said):
        ExtractorGraph.compile(definition, Definitions(featuresets=(definition,)), runner)


LOOKUP = """
    ran = []
    def f(cls, ts, x):
        mine = Counts.lookup(ts, who=x)
        theirs = Counts.lookup(ts, who="total")
        ran.append(x)
        return (mine["n"] if mine else 0) / theirs["n"] + 10 * len(ran)
"""


def lookups(runner: Runner, source: str = LOOKUP) -> tuple[ExtractorGraph, list[object]]:
    made = extractor("f", ("x",), ("y",), source, deps=("Counts",))
    graph = compiled(featureset("F", {"x": "str", "y": "float"}, made), runner=runner)
    return graph, ["me", None]


def test_a_lookup_inside_an_extractor_pauses_for_its_row_and_resumes(runner):
    graph, values = lookups(runner)
    rows = {}
    first = graph.run(values, AT, rows)
    assert first == Pause(0, Wanted("Counts", "me", AT))
    rows[first.wanted] = {"n": 3, "at": AT}
    second = graph.run(values, AT, rows, first.step)
    assert second == Pause(0, Wanted("Counts", "total", AT))
    rows[second.wanted] = {"n": 4, "at": AT}
    assert graph.run(values, AT, rows, second.step) is None
    assert values[1] == 10.75
    assert graph.datasets == ("Counts",)


def test_a_lookup_of_an_unknown_key_is_none_and_datetimes_come_as_datetimes(runner):
    graph, values = lookups(
        runner, "def f(cls, ts, x):\n    row = Counts.lookup(ts, who=x)\n    return row and row['at'].hour"
    )
    assert graph.run(values, AT, {Wanted("Counts", "me", AT): None}) is None
    assert values[1] is None
    graph.run(values, AT, {Wanted("Counts", "me", AT): {"n": 1, "at": AT}})
    assert values[1] == 12.0


def test_a_lookup_by_anything_but_the_key_is_the_users_error(runner):
    graph, values = lookups(runner, "def f(cls, ts, x): return Counts.lookup(ts, nobody=x)")
    with pytest.raises(UserCodeError, match="takes its key who="):
        graph.run(values, AT, {})


def test_a_users_broad_except_does_not_swallow_a_pause(runner):
    source = """
        def f(cls, ts, x):
            try:
                return Counts.lookup(ts, who=x)["n"]
            except Exception:
                return -1.0
    """
    graph, values = lookups(runner, source)
    assert graph.run(values, AT, {}) == Pause(0, Wanted("Counts", "me", AT))


MANY = 150  # more than one turn of a batch


def column(graph: ExtractorGraph, columns: list[list[object]], name: str) -> list[object]:
    return next(columns[slot.position] for slot in graph.slots if slot.feature.name == name)


def test_a_batch_gives_what_single_reads_give(runner):
    definition = featureset(
        "F",
        {"x": "int", "since": "datetime", "y": "int", "age": "float", "names": "list[str]"},
        extractor("f", ("x",), ("y",), "def f(cls, ts, x): return x * 2 if x is not None else None"),
        extractor("g", ("since",), ("age",), "def g(cls, ts, since): return (ts - since).total_seconds()"),
        extractor("h", ("y",), ("names",), "def h(cls, ts, inputs): return {'names': [str(inputs['y'])]}"),
    )
    graph = compiled(definition, runner=runner)
    given = [[None if i % 7 == 0 else i, AT - i * 1_000_000, None, None, None] for i in range(MANY)]
    instants = [AT + i for i in range(MANY)]
    columns = [list(each) for each in zip(*given, strict=True)]
    graph.run_batch(columns, instants)
    for values, at in zip(given, instants, strict=True):
        graph.run(values, at, {})
    assert [list(row) for row in zip(*columns, strict=True)] == given


def test_an_empty_batch_runs_nothing(runner):
    made = extractor("f", ("x",), ("y",), "def f(cls, ts, x): raise ValueError", vectorized=True)
    compiled(featureset("F", {"x": "int", "y": "int"}, made), runner=runner).run_batch([[], []], [])


VECTORIZED = """
    import polars as pl
    calls = []
    def f(cls, ts, x):
        calls.append(len(x))
        assert isinstance(x, pl.Series) and isinstance(ts, pl.Series)
        return {"y": x * 2, "calls": pl.Series([len(calls)] * len(x)), "rows": [len(x)] * len(x)}
"""


def test_a_vectorized_extractor_is_called_once_for_a_whole_batch(runner):
    made = extractor("f", ("x",), ("y", "calls", "rows"), VECTORIZED, vectorized=True)
    graph = compiled(featureset("F", {"x": "float", "y": "float", "calls": "int", "rows": "int"}, made), runner=runner)
    columns = [[float(i) for i in range(MANY)], [None] * MANY, [None] * MANY, [None] * MANY]
    graph.run_batch(columns, [AT] * MANY)
    assert columns[1:] == [[2.0 * i for i in range(MANY)], [1] * MANY, [MANY] * MANY]
    values = [5.0, None, None, None]
    assert graph.run(values, AT, {}) is None
    assert values == [5.0, 10.0, 2, 1]


@pytest.mark.parametrize(
    "returned", ["x + z, x - z", "[x + z, x - z]", "{'b': x - z, 'a': x + z}", "(x + z).to_list(), (x - z).to_numpy()"]
)
def test_a_vectorized_extractor_returns_in_every_shape(returned, runner):
    source = f"def f(cls, ts, x, z): return {returned}"
    made = extractor("f", ("x", "z"), ("a", "b"), source, vectorized=True)
    graph = compiled(featureset("F", {"x": "int", "z": "int", "a": "int", "b": "int"}, made), runner=runner)
    columns = [[1, 2], [10, 20], [None, None], [None, None]]
    graph.run_batch(columns, [AT, AT])
    assert columns[2:] == [[11, 22], [-9, -18]]


def test_a_vectorized_extractor_takes_one_dict_and_the_instants_as_a_series(run, runner):
    source = "def f(cls, ts, inputs): return (ts - inputs['x']).dt.total_microseconds()"
    made = extractor("f", ("x",), ("y",), source, vectorized=True)
    definition = featureset("F", {"x": "datetime", "y": "int"}, made)
    assert run(definition, x=AT - 3)["y"] == 3
    columns = [[AT, AT, None], [None, None, None]]
    compiled(definition, runner=runner).run_batch(columns, [AT + 1, AT + 2, AT])
    assert columns[1] == [1, 2, None]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", 2**62),
        ("float", 0.1),
        ("str", "é"),
        ("bool", True),
        ("datetime", AT),
        ("list[str]", ["a", "b"]),
        ("list[datetime]", [AT, AT + 1]),
    ],
)
def test_every_type_passes_a_vectorized_extractor_and_a_scalar_one(kind, value, one):
    source = "def f(cls, ts, x): return x"
    assert one(source, output=kind, input_type=kind, value=value, vectorized=True) == value
    assert one(source, output=kind, input_type=kind, value=None, vectorized=True) is None
    if not kind.startswith("list"):
        assert one(source, output=kind, input_type=kind, value=value) == value


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("x.sum()", "expected a Series or a list"),
        ("x[:0]", "0 values for 1 rows"),
        ("[1.0, 2.0]", "2 values for 1 rows"),
        ("x.cast(str)", "row 0: '4.0' is not a float"),
        ("{'z': x}", "missing: y; not declared: z"),
    ],
)
def test_a_vectorized_result_of_another_shape_or_type_is_refused(returned, said, one):
    with pytest.raises(UserCodeError, match=said):
        one(f"def f(cls, ts, x): return {returned}", vectorized=True)


def test_every_extractor_runs_once_however_many_take_its_output(runner):
    source = "calls = []\ndef top(cls, ts, x):\n    calls.append(x)\n    return len(calls)"
    definition = featureset(
        "F",
        {"x": "int", "top": "int", "left": "int", "right": "int", "both": "int"},
        extractor("both", ("left", "right"), ("both",), "def both(cls, ts, left, right): return left + right"),
        extractor("left", ("top",), ("left",), "def left(cls, ts, top): return top * 10"),
        extractor("right", ("top",), ("right",), "def right(cls, ts, top): return top * 100"),
        extractor("top", ("x",), ("top",), source),
    )
    graph = compiled(definition, runner=runner)
    for call in (1, 2):
        values = [0, None, None, None, None]
        graph.run(values, AT, {})
        assert values == [0, call, call * 10, call * 100, call * 110]
    columns = [[0] * 3, *([None] * 3 for _ in range(4))]
    graph.run_batch(columns, [AT] * 3)
    assert columns[1] == [3, 4, 5]


def test_one_text_in_two_featuresets_is_two_extractors(runner):
    source = "calls = []\ndef f(cls, ts, x):\n    calls.append(x)\n    return {'y': calls}"
    texts = featureset("Texts", {"x": "str", "y": "list[str]"}, extractor("f", ("x",), ("y",), source))
    numbers = featureset("Numbers", {"x": "int", "y": "list[int]"}, extractor("f", ("x",), ("y",), source))
    for definition, value in ((texts, "a"), (numbers, 1)):
        values = [value, None]
        compiled(definition, runner=runner).run(values, AT, {})
        assert values[1] == [value]


def test_a_function_is_loaded_once_for_all_reads(runner):
    source = "import itertools\nloads = itertools.count(1)\nloaded = next(loads)\ndef f(cls, ts, x): return next(loads)"
    graph = compiled(featureset("F", {"x": "int", "y": "int"}, extractor("f", ("x",), ("y",), source)), runner=runner)
    seen = []
    for _ in range(3):
        values = [1, None]
        graph.run(values, AT, {})
        seen.append(values[1])
    assert seen == [2, 3, 4]


@pytest.mark.parametrize("declared", ["list[int]", "str"])  # the stock SDK declares LastK as str
def test_changing_an_input_changes_nothing_for_others(run, declared):
    definition = featureset(
        "F",
        {"x": declared, "a": "int", "b": "list[int]"},
        extractor("fa", ("x",), ("a",), "def fa(cls, ts, x):\n    x.append(9)\n    x[0] = 7\n    return len(x)"),
        extractor("fb", ("x", "a"), ("b",), "def fb(cls, ts, inputs):\n    inputs.pop('a')\n    return inputs['x']"),
    )
    assert run(definition, x=[1, 2]) == {"x": [1, 2], "a": 3, "b": [1, 2]}


def test_changing_a_series_changes_nothing_for_others(run):
    change = "def fa(cls, ts, x):\n    x[0] = 7\n    x.append(x)\n    return x[:1]"
    definition = featureset(
        "F",
        {"x": "int", "a": "int", "b": "int"},
        extractor("fa", ("x",), ("a",), change, vectorized=True),
        extractor("fb", ("x", "a"), ("b",), "def fb(cls, ts, x, a): return x + a", vectorized=True),
    )
    assert run(definition, x=1) == {"x": 1, "a": 7, "b": 8}


def test_a_list_kept_by_user_code_is_not_the_one_that_was_answered(runner):
    source = "kept = []\ndef f(cls, ts, x):\n    kept.append(x)\n    return {'y': kept}"
    graph = compiled(
        featureset("F", {"x": "int", "y": "list[int]"}, extractor("f", ("x",), ("y",), source)), runner=runner
    )
    first, second = [1, None], [2, None]
    graph.run(first, AT, {})
    graph.run(second, AT, {})
    assert (first[1], second[1]) == ([1], [1, 2])


def test_what_is_printed_goes_to_the_log_and_harms_nothing(one):
    source = "import sys\ndef f(cls, ts, x):\n    print('seen', x)\n    sys.stdout.write('more')\n    return x"
    assert one(source) == 4.0


def test_a_batch_fetches_the_rows_of_all_its_look_ups_together(runner):
    source = """
        def f(cls, ts, x):
            return Counts.lookup(ts, who=x)["n"] / Counts.lookup(ts, who="total")["n"]
    """
    graph, _ = lookups(runner, source)
    trips: list[list[Wanted]] = []

    def fetch(wanted):
        trips.append(list(wanted))
        return [{"n": 1 if each.key == "total" else int(each.key), "at": AT} for each in wanted]

    columns = [["3", "4", "3"], [None] * 3]
    graph.run_batch(columns, [AT, AT, AT], fetch)
    assert trips == [
        [Wanted("Counts", "3", AT), Wanted("Counts", "4", AT)],
        [Wanted("Counts", "total", AT)],
    ]
    assert columns[1] == [3.0, 4.0, 3.0]


def test_look_ups_of_a_vectorized_extractor_resume_too(runner):
    source = "def f(cls, ts, x): return [Counts.lookup(t, who=w)['n'] for t, w in zip(ts, x)]"
    made = extractor("f", ("x",), ("y",), source, deps=("Counts",), vectorized=True)
    graph = compiled(featureset("F", {"x": "str", "y": "float"}, made), runner=runner)
    columns = [["3", "4"], [None, None]]
    graph.run_batch(columns, [AT, AT + 1], lambda wanted: [{"n": int(w.key) + w.at - AT, "at": AT} for w in wanted])
    assert columns[1] == [3.0, 5.0]


def test_changing_a_row_that_was_looked_up_changes_nothing_for_others(runner):
    source = """
        def f(cls, ts, x):
            Counts.lookup(ts, who=x)["n"] = 100
            return Counts.lookup(ts, who=x)["n"]
    """
    graph, values = lookups(runner, source)
    assert graph.run(values, AT, {Wanted("Counts", "me", AT): {"n": 1, "at": AT}}) is None
    assert values[1] == 1.0


def test_changing_a_list_of_a_row_that_was_looked_up_changes_nothing_for_others(runner):
    graph, values = lookups(runner, "def f(cls, ts, x): return Counts.lookup(ts, who=x)['last'].pop()")
    row = {"n": 1, "last": [1, 2], "at": AT}
    assert graph.run(values, AT, {Wanted("Counts", "me", AT): row}) is None
    assert (values[1], row["last"]) == (2.0, [1, 2])
