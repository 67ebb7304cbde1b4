"""Features of the context: look-ups, request values, extractors, many rows at past instants."""

from datetime import UTC, datetime

import polars as pl
import pyarrow as pa
import pytest

from featurelib.errors import InvalidRequest, InvalidTimestamp, NotFound, UserCodeError
from tests.unit.testing.shop import Derived, PairFeatures, Pairs, Purchase, Shop, UserFeatures
from tests.unit.testing.test_mock_aggregates import DAY, purchase


@pytest.fixture
def bought(ctx):
    ctx.add_events(Shop, [{"shop": "north", "city": "Oslo", "at": "2026-03-01"}])
    ctx.add_events(Purchase, [purchase("10:00:00", 10.0, "south"), purchase("12:00:00", 20.0, "north")])
    return ctx


def test_features_are_looked_up_requested_and_computed(bought):
    assert bought.query(UserFeatures, "ann", {"wanted": 3.0}) == {
        "user": "ann",
        "count": 2,
        "mean": 15.0,
        "last": "north",
        "offered": 10.0,
        "wanted": 3.0,
        "base": 25.0,
        "above": 28.0,
        "below": 22.0,
        "spread": 6.0,
        "scaled": 6.0,
        "city": "Oslo",
        "read_at": f"{DAY}T12:00:00Z",
    }


def test_an_instant_may_be_given(bought):
    row = bought.query("UserFeatures", "ann", {"wanted": 0.0}, at=datetime(2026, 4, 1, 11, tzinfo=UTC))
    assert (row["count"], row["last"], row["city"], row["read_at"]) == (1, "south", None, f"{DAY}T11:00:00Z")


def test_an_unknown_entity_has_defaults_and_nulls(bought):
    row = bought.query(UserFeatures, "bob", {"wanted": 1.0})
    assert (row["count"], row["mean"], row["last"], row["base"], row["city"]) == (0, -1.0, None, 9.0, None)
    assert row["read_at"] == f"{DAY}T12:00:00Z"


def test_a_context_without_events_answers_with_defaults(ctx):
    assert ctx.query(UserFeatures, "bob", {"wanted": 1.0})["mean"] == -1.0


def test_what_one_extractor_gives_to_two_is_computed_once(thyme, tmp_path):
    module = tmp_path / "diamond.py"
    log = tmp_path / "calls"
    module.write_text(
        f"""
from pathlib import Path
from featurelib import *

@featureset
class Diamond:
    user: str = feature()
    top: int = feature()
    left: int = feature()
    right: int = feature()
    bottom: int = feature()

    @extractor
    @extractor_inputs("user")
    @extractor_outputs("top")
    def make_top(cls, ts, user):
        with Path({str(log)!r}).open("a") as calls:
            calls.write("x")
        return len(user)

    @extractor
    @extractor_inputs("top")
    @extractor_outputs("left")
    def make_left(cls, ts, top):
        return top + 1

    @extractor
    @extractor_inputs("top")
    @extractor_outputs("right")
    def make_right(cls, ts, top):
        return top + 2

    @extractor
    @extractor_inputs("left", "right")
    @extractor_outputs("bottom")
    def make_bottom(cls, ts, left, right):
        return left * right
"""
    )
    assert thyme(module).query("Diamond", "ann")["bottom"] == 20
    assert log.read_text() == "x"


def test_inputs_of_another_featureset_are_read_for_the_same_entity(bought):
    assert bought.query(Derived, "ann") == {"user": "ann", "doubled": 30.0}


def test_a_composite_key_is_text_or_its_parts(ctx):
    ctx.add_events(Purchase, [purchase("10:00:00", user="a:b")])
    for key in (r"a\:b:north", ["a:b", "north"], ("a:b", "north"), '["a:b", "north"]'):
        assert ctx.query(PairFeatures, key)["count"] == 1
        assert ctx.get_aggregates(Pairs, key)["count"] == 1


def test_a_batch_reads_every_entity_at_its_own_newest_event(bought):
    bought.add_events(Purchase, [purchase("15:00:00", 5.0, user="bob")])
    result = bought.query_batch(UserFeatures, ["bob", "ann"], {"wanted": 2.0})
    assert result.columns[:2] == ["entity_id", "user"]
    assert list(zip(result["entity_id"], result["read_at"], strict=True)) == [
        ("bob", f"{DAY}T15:00:00Z"),
        ("ann", f"{DAY}T12:00:00Z"),
    ]
    assert result["scaled"] == [2.0, 4.0]


SPINE = [
    {"entity_id": "ann", "timestamp": f"{DAY}T12:00:00Z", "wanted": 1.0, "label": 1},
    {"entity_id": "bob", "timestamp": f"{DAY}T12:00:00Z", "wanted": 2.0, "label": 0},
    {"entity_id": "ann", "timestamp": f"{DAY}T10:00:00Z", "wanted": 3.0, "label": 1},
    {"entity_id": "ann", "timestamp": "2026-04-02T10:00:00Z", "wanted": 4.0, "label": 0},
]


@pytest.mark.parametrize("make", [list, pl.DataFrame, pa.Table.from_pylist], ids=["list", "polars", "arrow"])
def test_offline_rows_keep_their_order_and_their_instants(bought, make):
    result = bought.query_offline(UserFeatures, make(SPINE))
    assert result.columns[:3] == ["entity_id", "timestamp", "user"]
    assert result["timestamp"] == [row["timestamp"] for row in SPINE]
    assert result["count"] == [2, 0, 1, 2]
    assert result["last"] == ["north", None, "south", "north"]
    assert result["scaled"] == [2.0, 0.0, 3.0, 8.0]
    assert result["city"] == ["Oslo", None, None, "Oslo"]


def test_offline_columns_may_have_other_names(bought):
    rows = [{"who": "ann", "when": datetime(2026, 4, 1, 11, tzinfo=UTC), "wanted": 1}]
    assert bought.query_offline(UserFeatures, rows, "who", "when")["count"] == [1]


def test_offline_instants_of_which_some_name_a_zone_are_refused(bought):
    rows = [{"entity_id": "ann", "timestamp": text} for text in (f"{DAY}T11:00:00", f"{DAY}T12:00:00Z")]
    with pytest.raises(InvalidRequest, match="row 1 names a zone and row 0 does not"):
        bought.query_offline(UserFeatures, rows)


def test_offline_rows_know_what_was_known_at_their_instants(ctx):
    ctx.add_events(Shop, [{"shop": "north", "city": "Oslo", "at": "2026-03-01"}], accepted_at=f"{DAY}T14:00:00Z")
    ctx.add_events(Purchase, [purchase("10:00:00")], accepted_at=f"{DAY}T10:00:00Z")
    ctx.add_events(Purchase, [purchase("11:00:00")], accepted_at=f"{DAY}T13:00:00Z")
    rows = [{"entity_id": "ann", "timestamp": f"{DAY}T{hour}:00:00Z", "wanted": 1} for hour in (12, 13, 15)]
    served = ctx.query_offline(UserFeatures, rows, knowledge="as_served")
    assert served["count"] == [1, 2, 2]
    assert served["city"] == [None, None, "Oslo"]
    latest = ctx.query_offline(UserFeatures, rows)
    assert latest["count"] == [2, 2, 2]
    assert latest["city"] == ["Oslo", "Oslo", "Oslo"]


def test_many_offline_rows_give_what_single_queries_give(ctx):
    times = [f"{n // 60:02}:{n % 60:02}:00" for n in range(0, 600, 4)]
    ctx.add_events(Purchase, [purchase(time, 1.0 + n % 7, user=f"u{n % 3}") for n, time in enumerate(times)])
    rows = [
        {"entity_id": f"u{n % 4}", "timestamp": f"{DAY}T{n % 24:02}:{n % 60:02}:30Z", "wanted": 1} for n in range(300)
    ]
    found = ctx.query_offline(UserFeatures, rows)
    for row, given in list(zip(found.to_dict(), rows, strict=True))[::17]:
        single = ctx.query(UserFeatures, given["entity_id"], {"wanted": 1}, at=given["timestamp"])
        assert {name: row[name] for name in single} == {**single, "mean": pytest.approx(single["mean"])} | {
            name: pytest.approx(single[name]) for name in ("base", "above", "below", "spread")
        }


def test_no_offline_rows_are_no_mistake(bought):
    result = bought.query_offline(UserFeatures, [])
    assert len(result) == 0
    assert result.columns[:2] == ["entity_id", "timestamp"]


def test_what_an_extractor_raises_names_the_users_line(thyme, tmp_path):
    module = tmp_path / "broken.py"
    module.write_text(
        """
from featurelib import *

@featureset
class Broken:
    user: str = feature()
    bad: int = feature()

    @extractor
    @extractor_inputs("user")
    @extractor_outputs("bad")
    def fail(cls, ts, user):
        return 1 // 0
"""
    )
    with pytest.raises(UserCodeError, match=r"broken\.py:13 in Broken\.fail: ZeroDivisionError"):
        thyme(module).query("Broken", "ann")


def offline(**row):
    return lambda ctx: ctx.query_offline(UserFeatures, [row])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda ctx: ctx.query("UserFeature", "ann"), NotFound, r"'UserFeature'. Did you mean `UserFeatures`"),
        (lambda ctx: ctx.query(UserFeatures, "ann"), InvalidRequest, r"inputs\.wanted: missing"),
        (lambda ctx: ctx.query(UserFeatures, "ann", {"wanted": "x"}), InvalidRequest, r"inputs\.wanted: 'x' is not"),
        (lambda ctx: ctx.query(UserFeatures, "ann", {"want": 1}), InvalidRequest, r"inputs\.want: no such request"),
        (lambda ctx: ctx.query(UserFeatures, None, {"wanted": 1}), InvalidRequest, r"entity_ids\[0\]: expected"),
        (offline(entity="ann", timestamp=DAY), InvalidRequest, r"rows\[0\]: .*'entity_id'. Did you mean `entity`"),
        (offline(entity_id="ann", wanted=1), InvalidRequest, r"rows\[0\]: there is no column 'timestamp'"),
        (offline(entity_id="ann", timestamp="x", wanted=1), InvalidTimestamp, r"rows\[0\]\.timestamp: 'x' is not"),
        (offline(entity_id="ann", timestamp=DAY), InvalidRequest, r"rows\[0\]: inputs\.wanted: missing"),
    ],
)
def test_a_mistaken_query_says_what_is_wrong(ctx, call, error, message):
    with pytest.raises(error, match=message):
        call(ctx)


def test_an_extractor_that_hangs_is_interrupted_and_told(thyme, tmp_path):
    module = tmp_path / "endless.py"
    module.write_text(
        """
from featurelib import *


@featureset
class Endless:
    user: str = feature()
    out: float = feature()

    @extractor
    @extractor_inputs("user")
    @extractor_outputs("out")
    def turn(cls, ts, user):
        while True:
            pass
"""
    )
    with pytest.raises(UserCodeError, match=r"endless\.py:\d+ in Endless\.turn: took longer than 2000 ms"):
        thyme(module).query("Endless", "ann")
