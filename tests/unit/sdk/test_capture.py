"""The text of an extractor holds all it needs and nothing else."""

import pytest

from featurelib.compile import compile_module
from featurelib.errors import DefinitionError
from tests.support.modules import HEAD, write_module

TAIL = """
@featureset
class F:
    shop: str = feature()
    x: float = feature()

    @extractor
    @extractor_outputs("x")
    def f(cls, ts):
{body}
"""


def _module(head: str, body: str) -> str:
    indented = "\n".join(f"        {line}" for line in body.splitlines())
    return HEAD + head + TAIL.format(body=indented)


def _captured(tmp_path, head: str, body: str) -> str:
    commit = compile_module(write_module(tmp_path, _module(head, body)))
    return commit.featuresets[0].extractors[0].code.source


def _codes(tmp_path, head: str, body: str) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, _module(head, body)))
    return [problem.code for problem in caught.value.problems]


def _value(source: str) -> object:
    scope: dict[str, object] = {}
    exec(source, scope)
    return scope["f"](None, None)


def test_a_function_on_its_own_is_its_text_without_decorators(tmp_path):
    assert _captured(tmp_path, "", "return 1.0") == "def f(cls, ts):\n    return 1.0\n"


def test_only_the_used_name_of_an_import_is_carried(tmp_path):
    source = _captured(tmp_path, "from math import sqrt, log as ln\nimport json\n", "return ln(1.0)")
    assert source.startswith("from math import log as ln\n")
    assert "sqrt" not in source
    assert "json" not in source


def test_a_dotted_import_is_carried_by_its_first_name(tmp_path):
    source = _captured(tmp_path, "import os.path\n", "return float(len(os.path.sep))")
    assert source.startswith("import os.path\n")
    assert _value(source) == 1.0


def test_needs_are_followed_through_functions_constants_and_classes(tmp_path):
    head = (
        "from dataclasses import dataclass\n"
        "BASE = 3\n"
        "STEP = BASE + 1\n"
        "UNUSED = 9\n"
        "@dataclass\n"
        "class Pair:\n"
        "    left: int\n"
        "    right: int = STEP\n"
        "def total(pair):\n"
        "    return pair.left + pair.right\n"
    )
    source = _captured(tmp_path, head, "return float(total(Pair(1)))")
    assert _value(source) == 5.0
    assert "UNUSED" not in source


def test_functions_that_call_each_other_are_carried_once(tmp_path):
    head = "def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != 0 and even(n - 1)\n"
    source = _captured(tmp_path, head, "return float(even(4))")
    assert _value(source) == 1.0
    assert source.count("def odd") == 1


def test_a_conditional_import_is_carried_whole(tmp_path):
    head = "try:\n    import absent_package as fast\nexcept ImportError:\n    fast = None\n"
    assert _value(_captured(tmp_path, head, "return 1.0 if fast is None else 0.0")) == 1.0


def test_the_inside_of_a_string_keeps_its_indentation(tmp_path):
    body = '        text = """a\n        b\n  c"""\n        return float(len(text))'
    path = write_module(tmp_path, HEAD + TAIL.format(body=body))
    source = compile_module(path).featuresets[0].extractors[0].code.source
    assert _value(source) == float(len("a\n        b\n  c"))


def test_the_line_of_the_function_is_kept_outside_the_digest(tmp_path):
    path = write_module(tmp_path, _module("", "return 1.0"))
    code = compile_module(path).featuresets[0].extractors[0].code
    assert path.read_text().splitlines()[code.line - 1].strip() == "def f(cls, ts):"
    assert code.file == path.name


def test_the_file_of_a_function_is_kept_without_the_folders_of_the_machine(tmp_path, monkeypatch):
    below = tmp_path / "team"
    below.mkdir()
    path = write_module(below, _module("", "return 1.0"))
    monkeypatch.chdir(tmp_path)
    assert compile_module(path).featuresets[0].extractors[0].code.file == "team/features.py"


def test_annotations_nobody_evaluates_need_not_be_carried(tmp_path):
    text = "from __future__ import annotations\n" + _module("", "return 1.0").replace(
        "(cls, ts)", "(cls: Nowhere, ts: Never)"
    )
    source = compile_module(write_module(tmp_path, text)).featuresets[0].extractors[0].code.source
    assert source.startswith("from __future__ import annotations\n")
    assert _value(source) == 1.0


def test_a_value_of_an_enclosing_function_is_a_problem(tmp_path):
    text = HEAD + (
        "def make(factor):\n"
        "    @featureset\n"
        "    class F:\n"
        "        shop: str = feature()\n"
        "        x: float = feature()\n"
        "        @extractor\n"
        "        @extractor_outputs('x')\n"
        "        def f(cls, ts):\n"
        "            return 1.0 * factor\n"
        "    return F\n"
        "F = make(2.0)\n"
    )
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, text))
    assert [(problem.code, problem.line) for problem in caught.value.problems] == [("closure", 9)]


def test_an_import_of_a_neighbouring_file_is_a_problem(tmp_path):
    (tmp_path / "neighbour_of_features.py").write_text("FACTOR = 2.0\n")
    assert _codes(tmp_path, "from neighbour_of_features import FACTOR\n", "return FACTOR") == ["local_import"]


def test_each_undefined_name_is_a_problem_of_its_own(tmp_path):
    assert _codes(tmp_path, "", "return here + there") == ["unresolved_name", "unresolved_name"]


STATS = """
@dataset(index=True)
class Stats:
    shop: str = field(key=True)
    total: float = field()
    at: datetime = field(timestamp=True)

"""
ALIAS = "Alias = Stats\n"
LOOKED_UP = """
@featureset
class F:
    shop: str = feature()
    x: float = feature()

    @extractor{arguments}
    @extractor_inputs("shop")
    @extractor_outputs("x")
    def f(cls, ts, shop):
        return {name}.lookup(ts, shop=shop)["total"]
"""


def _looked_up(tmp_path, arguments: str, name: str = "Stats"):
    text = HEAD + STATS + ALIAS + LOOKED_UP.format(arguments=arguments, name=name)
    return compile_module(write_module(tmp_path, text))


def test_a_dataset_in_deps_may_be_looked_up_and_is_not_carried(tmp_path):
    made = _looked_up(tmp_path, "(deps=[Stats])").featuresets[0].extractors[0]
    assert made.deps == ("Stats",)
    assert made.code.source.startswith("def f(")


@pytest.mark.parametrize("arguments", ["", "(deps=[])"])
def test_a_look_up_of_a_dataset_outside_deps_says_what_to_write(tmp_path, arguments):
    with pytest.raises(DefinitionError) as caught:
        _looked_up(tmp_path, arguments)
    (problem,) = caught.value.problems
    assert (problem.code, problem.subject) == ("missing_dep", "F.f")
    assert "deps=[Stats]" in problem.hint


def test_a_look_up_under_another_name_of_the_dataset_is_a_problem(tmp_path):
    with pytest.raises(DefinitionError) as caught:
        _looked_up(tmp_path, "(deps=[Stats])", "Alias")
    assert [problem.code for problem in caught.value.problems] == ["lookup_unsupported"]


def test_a_featureset_cannot_be_read_in_the_body(tmp_path):
    head = "@featureset\nclass Other:\n    shop: str = feature()\n"
    assert _codes(tmp_path, head, "return Other.shop") == ["lookup_unsupported"]


def test_a_vectorized_extractor_carries_its_import_of_polars(tmp_path):
    head = "import polars as pl\n"
    text = HEAD + head + TAIL.format(body="        return pl.Series([1.0] * len(ts))")
    commit = compile_module(write_module(tmp_path, text.replace("@extractor\n", "@extractor(vectorized=True)\n")))
    made = commit.featuresets[0].extractors[0]
    assert made.vectorized
    assert made.code.source.startswith("import polars as pl\n")
