"""A module becomes a commit: equal meaning, equal bytes, wherever and however often it is compiled."""

import importlib.util
import json
import subprocess
import sys

import pytest

from featurelib.compile import compile_module
from featurelib.definitions import Commit, canonical_bytes, digest
from featurelib.errors import DefinitionError
from featurelib.plan import commit_id
from tests.support.modules import EVENT, FEATURES, HEAD, STATS, VALID, write_module


def test_a_commit_survives_json_and_keeps_its_digest(tmp_path):
    commit = compile_module(write_module(tmp_path, VALID))
    again = Commit.model_validate_json(commit.model_dump_json())
    assert again == commit
    assert digest(again) == digest(commit)


def test_compiling_twice_gives_the_same_commit(tmp_path):
    path = write_module(tmp_path, VALID)
    assert compile_module(path) == compile_module(path)


def test_the_folder_and_the_place_in_the_file_have_no_meaning(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    first = compile_module(write_module(one, VALID))
    second = compile_module(write_module(two, "# a comment\n\n" + VALID, name="other.py"))
    assert first.locations != second.locations
    assert canonical_bytes(first) == canonical_bytes(second)


def test_the_order_of_definitions_does_not_change_the_commit_id(tmp_path):
    rate = "\n@dataset()\nclass Rate:\n    k: str = field(key=True)\n    at: datetime = field(timestamp=True)\n"
    first = compile_module(write_module(tmp_path, HEAD + rate + EVENT))
    second = compile_module(write_module(tmp_path, HEAD + EVENT + rate))
    assert first.datasets != second.datasets
    assert commit_id(first) == commit_id(second)


def test_a_changed_window_changes_the_commit_id(tmp_path):
    first = compile_module(write_module(tmp_path, VALID))
    second = compile_module(write_module(tmp_path, VALID.replace('window="1d"', 'window="2d"')))
    assert commit_id(first) != commit_id(second)


def test_definitions_from_a_neighbouring_module_are_part_of_the_commit(tmp_path):
    write_module(tmp_path, HEAD + EVENT + STATS, name="datasets_of_shops.py")
    path = write_module(tmp_path, "from datasets_of_shops import *\n" + FEATURES)
    for _ in range(2):
        commit = compile_module(path)
        assert [each.name for each in commit.datasets] == ["Sale", "ShopStats"]
        assert [each.name for each in commit.featuresets] == ["ShopFeatures"]
    assert "datasets_of_shops" not in sys.modules


def test_a_mistake_in_a_neighbouring_module_names_that_file(tmp_path):
    write_module(tmp_path, HEAD + EVENT.replace("paid: bool", "paid: bytes"), name="neighbour.py")
    path = write_module(tmp_path, "from neighbour import *\n")
    with pytest.raises(DefinitionError) as caught:
        compile_module(path)
    assert [problem.file for problem in caught.value.problems] == [str(tmp_path / "neighbour.py")]


def test_a_module_that_is_imported_already_compiles_to_the_same_commit(tmp_path, monkeypatch):
    path = write_module(tmp_path, VALID, name="imported_features.py")
    spec = importlib.util.spec_from_file_location("imported_features", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "imported_features", module)
    spec.loader.exec_module(module)
    assert compile_module(module) == compile_module(path)


def test_annotations_as_text_are_understood(tmp_path):
    commit = compile_module(write_module(tmp_path, "from __future__ import annotations\n" + VALID))
    plain = compile_module(write_module(tmp_path, VALID))
    assert commit.datasets == plain.datasets


UNSAID = (
    HEAD
    + EVENT
    + """
def banded(frame):
    return frame.with_columns((frame["amount"] * 2).alias("double"), frame["note"].alias("band"))

@dataset()
class Out:
    band: str = field(key=True)
    total: float = field()
    at: datetime = field(timestamp=True)

    @pipeline()
    @inputs(Sale)
    def p(cls, sales):
        return sales.transform(banded).filter(col("double") > 1).groupby("band").aggregate(total=Sum(of="amount"))
"""
)


def test_a_transform_that_does_not_say_its_columns_gives_those_that_later_steps_need(tmp_path):
    commit = compile_module(write_module(tmp_path, UNSAID))
    columns = dict(commit.pipelines[0].steps[0].columns)
    assert (columns["double"], columns["band"]) == ("float", "str")
    assert columns["pieces"] == "int"


def test_a_transform_that_only_overwrites_says_nothing(tmp_path):
    text = UNSAID.replace('.filter(col("double") > 1).groupby("band")', '.assign(band="all").groupby("band")')
    assert compile_module(write_module(tmp_path, text)).pipelines[0].steps[0].columns == ()


REGISTERED = """
import json, featurelib
from datetime import datetime
from typing import Optional
from featurelib import *

{text}

datasets, pipelines = get_registered_datasets(), get_registered_pipelines()
datasets["Sale"]["version"] = 999
payload = get_commit_payload()
print(json.dumps([
    sorted(datasets),
    get_registered_datasets()["Sale"]["version"],
    [(each["name"], each["output_dataset"]) for each in pipelines],
    sorted(json.loads(serialize_definitions())),
    payload,
]))
clear_registry()
assert get_registered_datasets() == {{}} == json.loads(serialize_definitions())
"""


def test_the_stock_payload_holds_all_that_the_process_declared(tmp_path):
    path = write_module(tmp_path, REGISTERED.format(text=VALID.removeprefix(HEAD)))
    out = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True).stdout
    datasets, version, pipelines, serialized, payload = json.loads(out)
    assert datasets == serialized == ["Sale", "ShopStats"]
    assert version == 1
    assert pipelines == [["by_shop", "ShopStats"]]
    sent, compiled = Commit.model_validate(payload), compile_module(write_module(tmp_path, VALID))
    assert commit_id(sent) == commit_id(compiled)


def test_the_stock_payload_of_a_mistake_is_refused_with_its_line(tmp_path):
    text = VALID.removeprefix(HEAD).replace("pieces: int", "pieces: complex")
    path = write_module(tmp_path, REGISTERED.format(text=text))
    failed = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "complex is not a column type" in failed.stderr
    assert "features.py:" in failed.stderr


def test_importing_the_sdk_loads_nothing_heavy():
    heavy = ["ray", "redis", "sqlalchemy", "polars", "pyarrow", "pandas", "numpy", "httpx2", "typer", "rich", "fastapi"]
    script = (
        "import sys; before = set(sys.modules); import featurelib; "
        f"loaded = set(sys.modules) - before; print(len(loaded), *(m for m in {heavy!r} if m in loaded))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    # pydantic is most of it: about 240 modules in all; the HTTP client alone would add more than a hundred.
    assert int(out[0]) < 320
    assert out[1:] == []
