"""Which of its forms an answer of many rows takes."""

from __future__ import annotations

import pyarrow as pa
import pytest

from featurelib.engine.table import arrow_column
from serve_apps.tabular import wants_arrow

ARROW = "application/vnd.apache.arrow.stream"
ACCEPTED = {
    None: False,
    "*/*": False,
    "application/*": False,
    "application/json": False,
    "text/html": False,
    ARROW: True,
    f"application/json;q=0.9,{ARROW}": True,
    f"application/json, {ARROW}": False,
    f"{ARROW}, application/json": True,
    f"{ARROW};q=0.2, application/json;q=0.1": True,
    f"{ARROW};q=0.2, */*;q=0.8": False,
    f"{ARROW};q=0, */*": False,
    f"{ARROW}, */*": True,
    f"{ARROW};q=nonsense, application/json;q=0.1": False,
    f"{ARROW.upper()};Q=1": True,
}


@pytest.mark.parametrize("accept", ACCEPTED)
def test_what_a_caller_accepts_is_weighed(accept):
    headers = {} if accept is None else {b"accept": accept.encode()}
    assert wants_arrow(headers, None) == ACCEPTED[accept]


def test_a_format_outweighs_what_is_accepted():
    assert not wants_arrow({b"accept": ARROW.encode()}, "positional")
    assert wants_arrow({b"accept": b"application/json"}, "arrow")


def test_a_column_whose_values_do_not_fit_its_declared_type_has_the_type_of_its_values():
    assert arrow_column("int", [3.5, None]).type == pa.float64()
    assert arrow_column("str", [["a"], None]).type == pa.list_(pa.string())
    assert arrow_column("int", [3.5, "a"]).to_pylist() == ["3.5", "a"]
    assert arrow_column("list[datetime]", [[1_000_000], None]).type == pa.list_(pa.timestamp("us", tz="UTC"))
