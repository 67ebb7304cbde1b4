"""The extractor graph: order, calling convention, shapes, casts, and errors at the user's line."""

from __future__ import annotations

import pickle
import textwrap
from datetime import UTC, datetime

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
from featurelib.engine.extract import ExtractorGraph, Pause, Wanted
from featurelib.errors import DefinitionError, UserCodeError

AT = 1_772_366_400_000_000  # 2026-03-01T12:00:00Z
COUNTS = DatasetDef(
    name="Counts",
    index=True,
    fields=(
        FieldDef(name="who", type="str", key=True),
        FieldDef(name="n", type="int"),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)


def code(source: str, line: int | None = 41) -> PyCode:
    source = textwrap.dedent(source).strip()
    name = next(part for part in source.split("def ")[-1].split("(")[:1])
    return PyCode(entry_point=name, source=source, file="features.py", line=line)


def extractor(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], source: str, deps=()) -> ExtractorDef:
    return ExtractorDef(name=name, inputs=inputs, outputs=outputs, deps=deps, code=code(source))


def featureset(name: str, types: dict[str, str], *extractors: ExtractorDef) -> FeaturesetDef:
    features = tuple(FeatureDef(name=feature, type=kind) for feature, kind in types.items())
    return FeaturesetDef(name=name, features=features, extractors=extractors)


def run(definition: FeaturesetDef, *others: FeaturesetDef, at: int = AT, **given: object) -> dict[str, object]:
    graph = ExtractorGraph.compile(definition, Definitions(featuresets=(definition, *others), datasets=(COUNTS,)))
    values = [given.get(slot.feature.name) for slot in graph.slots]
    assert graph.run(values, at, {}) is None
    return {slot.feature.name: values[slot.position] for slot in graph.slots if slot.featureset == definition.name}


def one(source: str, *, output: str = "float", input_type: str = "float", value: object = 4.0) -> object:
    definition = featureset("F", {"x": input_type, "y": output}, extractor("f", ("x",), ("y",), source))
    return run(definition, x=value)["y"]


def test_inputs_are_given_by_position_after_cls_and_ts():
    source = "def f(cls, ts, x): return (cls, ts)[0] or x * 2"
    assert one(source) == 8.0


def test_the_instant_is_an_aware_utc_datetime():
    assert one("def f(cls, ts, x): return ts", output="datetime") == AT
    assert one("def f(cls, ts, x): return ts.utcoffset().total_seconds() + ts.hour") == 12.0


def test_a_single_parameter_called_inputs_takes_a_dict():
    assert one("def f(cls, ts, inputs): return inputs['x'] + len(inputs)") == 5.0


def test_a_datetime_input_is_a_datetime_and_so_is_one_returned():
    source = "def f(cls, ts, x): return x.replace(year=2027)"
    back = one(source, input_type="datetime", output="datetime", value=AT)
    assert back == int(datetime(2027, 3, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000


def test_a_missing_input_is_none():
    assert one("def f(cls, ts, x): return 1.0 if x is None else 0.0", value=None) == 1.0


@pytest.mark.parametrize("returned", ["{'a': 1, 'b': 'z'}", "(1, 'z')", "[1, 'z']"])
def test_several_outputs_come_as_a_dict_or_in_order(returned):
    definition = featureset(
        "F",
        {"x": "int", "a": "int", "b": "str"},
        extractor("f", ("x",), ("a", "b"), f"def f(cls, ts, x): return {returned}"),
    )
    assert run(definition, x=1) == {"x": 1, "a": 1, "b": "z"}


def test_no_inputs_are_fine():
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
def test_what_is_returned_is_cast_without_loss_or_refused(kind, returned, value):
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
def test_no_number_is_null(returned):
    assert one(f"def f(cls, ts, x): return {returned}") is None


def test_a_numpy_scalar_is_its_python_value():
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
def test_a_dict_with_other_names_is_refused(returned, said):
    with pytest.raises(UserCodeError, match=said):
        one(f"def f(cls, ts, x): return {returned}")


@pytest.mark.parametrize("returned", ["1", "(1,)", "(1, 2, 3)", "None"])
def test_several_outputs_of_another_shape_are_refused(returned):
    definition = featureset(
        "F",
        {"x": "int", "a": "int", "b": "int"},
        extractor("f", ("x",), ("a", "b"), f"def f(cls, ts, x): return {returned}"),
    )
    with pytest.raises(UserCodeError, match="expected a dict or a tuple of 2: a, b"):
        run(definition, x=1)


def test_an_error_names_the_users_line_and_function():
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
    assert "return helper(-y)" in "".join(format_trace(caught.value))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def format_trace(error: UserCodeError) -> list[str]:
    import traceback

    return traceback.format_exception(error)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(cls, ts, x): raise SystemExit(1)", "SystemExit"),
        ("def f(cls, ts, x): return f(cls, ts, x)", "RecursionError"),
        ("def f(cls, ts, x): return [][0]", "IndexError"),
        ("def f(cls, ts, x): return x.missing", "AttributeError"),
    ],
)
def test_whatever_user_code_raises_is_marked_as_theirs(source, said):
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
def test_code_that_does_not_load_is_refused_when_the_graph_is_compiled(source, said):
    definition = featureset("F", {"x": "float", "y": "float"}, extractor("f", ("x",), ("y",), source))
    with pytest.raises(UserCodeError, match=said):
        ExtractorGraph.compile(definition, Definitions(featuresets=(definition,)))


def test_a_source_without_the_named_function_is_refused():
    made = ExtractorDef(name="f", inputs=(), outputs=("y",), code=PyCode(entry_point="f", source="g = 1"))
    definition = featureset("F", {"x": "float", "y": "float"}, made)
    with pytest.raises(UserCodeError, match="defines no function 'f'"):
        ExtractorGraph.compile(definition, Definitions(featuresets=(definition,)))


def test_extractors_run_after_those_they_take_from_each_once():
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


def test_an_input_of_another_featureset_is_computed_first_and_only_what_is_needed():
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


def test_a_dotted_input_answers_under_both_names_in_the_dict():
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
def test_a_graph_that_does_not_fit_together_is_refused(inputs, said):
    definition = featureset(
        "F",
        {"x": "int", "a": "int", "b": "int"},
        extractor("fa", inputs, ("a",), "def fa(cls, ts, v): return v"),
        extractor("fb", ("a",), ("b",), "def fb(cls, ts, v): return v"),
    )
    with pytest.raises(DefinitionError, match=said):
        ExtractorGraph.compile(definition, Definitions(featuresets=(definition,)))


LOOKUP = """
    ran = []
    def f(cls, ts, x):
        mine = Counts.lookup(ts, who=x)
        theirs = Counts.lookup(ts, who="total")
        ran.append(x)
        return (mine["n"] if mine else 0) / theirs["n"] + 10 * len(ran)
"""


def lookups(source: str = LOOKUP) -> tuple[ExtractorGraph, list[object]]:
    definition = featureset("F", {"x": "str", "y": "float"}, extractor("f", ("x",), ("y",), source, ("Counts",)))
    graph = ExtractorGraph.compile(definition, Definitions(featuresets=(definition,), datasets=(COUNTS,)))
    return graph, ["me", None]


def test_a_lookup_inside_an_extractor_pauses_for_its_row_and_resumes():
    graph, values = lookups()
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


def test_a_lookup_of_an_unknown_key_is_none_and_datetimes_come_as_datetimes():
    graph, values = lookups("def f(cls, ts, x):\n    row = Counts.lookup(ts, who=x)\n    return row and row['at'].hour")
    assert graph.run(values, AT, {Wanted("Counts", "me", AT): None}) is None
    assert values[1] is None
    graph.run(values, AT, {Wanted("Counts", "me", AT): {"n": 1, "at": AT}})
    assert values[1] == 12.0


def test_a_lookup_by_anything_but_the_key_is_the_users_error():
    graph, values = lookups("def f(cls, ts, x): return Counts.lookup(ts, nobody=x)")
    with pytest.raises(UserCodeError, match="takes its key who="):
        graph.run(values, AT, {})


def test_a_users_broad_except_does_not_swallow_a_pause():
    source = """
        def f(cls, ts, x):
            try:
                return Counts.lookup(ts, who=x)["n"]
            except Exception:
                return -1.0
    """
    graph, values = lookups(source)
    assert graph.run(values, AT, {}) == Pause(0, Wanted("Counts", "me", AT))
