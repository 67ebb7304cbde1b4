"""The protobuf body of the stock SDK means what its JSON body means; written here by the wire's own rules."""

import json
import struct
from pathlib import Path

import pytest

from featurelib.definitions import FilterCodeStep, TransformStep, canonical_bytes
from featurelib.errors import DefinitionError, InvalidRequest
from featurelib.plan import Changes, CommitReceipt, commit_id
from featurelib.stock import from_stock
from featurelib.stock_protobuf import message, response_of, tree_of

FIXTURES = Path(__file__).parents[2] / "fixtures" / "thyme_commit"
BODY = (FIXTURES / "flights_features.pb").read_bytes()
INT, FLOAT, STRING, TIMESTAMP = (number for number in (2, 3, 4, 5))


def varint(value):
    out = b""
    value &= 2**64 - 1
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def number(member, value):
    return varint(member << 3) + varint(int(value))


def double(member, value):
    return varint(member << 3 | 1) + struct.pack("<d", value)


def text(member, value):
    return inside(member, value.encode())


def inside(member, *parts):
    content = b"".join(parts)
    return varint(member << 3 | 2) + varint(len(content)) + content


def dtype(kind, *content):
    return inside(2, inside(kind, *content))


def column(name, kind, *more):
    return inside(1, text(1, name), dtype(kind), *more)


def dataset(*more, columns=()):
    """A dataset of the number 2 of a commit: key, time, and what is given."""
    schema = inside(3, column("shop", STRING, number(3, 1)), *columns, column("at", TIMESTAMP, number(4, 1)))
    return inside(2, text(1, "Sale"), number(2, 1), schema, *more)


def source(connector, *settings):
    return inside(5, text(1, "Sale"), text(2, "at"), text(3, "5s"), text(5, "append"), inside(connector, *settings))


def pipeline(*operators, more=b""):
    last = inside(2, text(2, "shop"), inside(3, text(1, "count"), text(3, "1d"), text(4, "sales")))
    every = b"".join(inside(5, each) for each in (*operators, last))
    return inside(3, text(1, "by_shop"), number(2, 1), text(3, "Sale"), text(4, "Stats"), every, more)


def read(*parts):
    return from_stock(tree_of(b"".join(parts)))


def steps(*operators):
    return read(dataset(), pipeline(*operators)).pipelines[0].steps


def codes(*parts):
    with pytest.raises(DefinitionError) as caught:
        read(*parts)
    return [problem.code for problem in caught.value.problems]


def test_both_bodies_of_a_module_mean_the_same_and_have_one_id():
    ours, theirs = from_stock(tree_of(BODY)), from_stock(json.loads((FIXTURES / "flights_features.json").read_text()))
    for kind in ("datasets", "pipelines", "featuresets", "sources"):
        assert [canonical_bytes(each) for each in getattr(ours, kind)] == [
            canonical_bytes(each) for each in getattr(theirs, kind)
        ]
    assert commit_id(ours) == commit_id(theirs)
    assert len(ours.all) == len(theirs.all) > 8


def test_the_message_of_a_commit_is_read_and_changes_no_id():
    commit = read(text(1, "autumn"), dataset())
    assert commit.message == "autumn"
    assert commit_id(commit) == commit_id(read(dataset()))


def test_optional_and_list_columns_are_read():
    optional = inside(1, text(1, "note"), dtype(6, inside(1, inside(INT))))
    listed = inside(1, text(1, "tags"), dtype(7, inside(1, inside(STRING))))
    both = inside(1, text(1, "parts"), dtype(6, inside(1, inside(7, inside(1, inside(FLOAT))))))
    found = {
        each.name: (each.type, each.optional)
        for each in read(dataset(columns=(optional, listed, both))).datasets[0].fields
    }
    assert found["note"] == ("int", True)
    assert found["tags"] == ("list[str]", False)
    assert found["parts"] == ("list[float]", True)


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        (8, (inside(1, inside(STRING)), inside(2, inside(INT))), "dict[str, int]"),
        (7, (inside(1, inside(7, inside(1, inside(INT)))),), "list[list[int]]"),
        (9, (), "of a kind this schema does not have"),
    ],
    ids=["map", "list of lists", "unknown"],
)
def test_a_type_the_platform_lacks_is_a_problem_that_names_it(kind, content, said):
    strange = inside(1, text(1, "odd"), dtype(kind, *content))
    with pytest.raises(DefinitionError, match="not a column type") as caught:
        read(dataset(columns=(strange,)))
    assert said in caught.value.problems[0].message


def test_an_optional_feature_is_read_as_the_json_body_says_it():
    feature = inside(2, text(1, "mood"), dtype(6, inside(1, inside(STRING))), number(4, 1))
    (found,) = read(inside(4, text(1, "Shop"), feature)).featuresets[0].features
    assert (found.name, found.type, found.optional, found.request) == ("mood", "str", False, True)


@pytest.mark.parametrize(
    ("literal", "value"),
    [(number(1, -3), -3), (double(2, 2.5), 2.5), (text(3, "x"), "x"), (number(4, 1), True), (number(1, 0), 0)],
    ids=["int", "float", "text", "bool", "zero"],
)
def test_a_default_keeps_its_type(literal, value):
    feature = inside(2, text(1, "fee"), dtype(FLOAT), number(4, 1), inside(5, literal))
    (found,) = read(inside(4, text(1, "Shop"), feature)).featuresets[0].features
    assert (found.default, type(found.default)) == (value, type(value))


def test_a_look_up_and_an_extractor_are_read():
    looked = inside(
        3,
        text(1, "_l"),
        text(3, "sales"),
        number(7, 2),
        inside(8, text(1, "Stats"), text(2, "sales"), inside(3, number(1, 0))),
    )
    code = inside(
        5, text(1, "twice"), text(2, "@extractor\ndef twice(cls, ts, n):\n    return 2 * n\n"), text(4, "import math")
    )
    made = inside(
        3, text(1, "twice"), text(2, "sales"), text(3, "double"), text(4, "Other"), code, number(6, 3), number(7, 1)
    )
    features = (inside(2, text(1, name), dtype(INT)) for name in ("sales", "double"))
    (found,) = read(inside(4, text(1, "Shop"), *features, looked, made)).featuresets
    assert (found.features[0].lookup.dataset, found.features[0].lookup.field, found.features[0].default) == (
        "Stats",
        "sales",
        0,
    )
    (extractor,) = found.extractors
    assert (extractor.inputs, extractor.outputs, extractor.deps, extractor.version) == (
        ("sales",),
        ("double",),
        ("Other",),
        3,
    )
    assert extractor.code.source == "import math\n\ndef twice(cls, ts, n):\n    return 2 * n\n"


CONNECTORS = {
    "iceberg": (10, {"catalog": 1, "database": 2, "table": 3}),
    "postgres": (
        11,
        {"host": 1, "port": 2, "database": 3, "table": 4, "user": 5, "password": 6, "schema": 7, "sslmode": 8},
    ),
    "s3_json": (12, {"bucket": 1, "prefix": 2, "region": 3}),
    "kafka": (
        13,
        {
            "brokers": 1,
            "topic": 2,
            "security_protocol": 3,
            "sasl_mechanism": 4,
            "sasl_username": 5,
            "sasl_password": 6,
            "format": 7,
            "group_id": 8,
            "schema_registry_url": 9,
        },
    ),
    "kinesis": (
        14,
        {"stream_arn": 1, "role_arn": 2, "region": 3, "init_position": 4, "format": 5, "endpoint_url": 6},
    ),
    "snowflake": (
        15,
        {
            "account": 1,
            "database": 2,
            "schema": 3,
            "warehouse": 4,
            "role": 5,
            "table": 6,
            "user": 7,
            "password": 8,
            "private_key": 9,
            "private_key_passphrase": 10,
            "endpoint_url": 11,
        },
    ),
    "bigquery": (16, {"project_id": 1, "dataset_id": 2, "table": 3, "credentials_json": 4}),
}
SECRETS = {"password", "sasl_password", "role_arn", "private_key", "private_key_passphrase", "credentials_json"}


@pytest.mark.parametrize("kind", CONNECTORS)
def test_every_setting_of_every_connector_is_read(kind):
    place, members = CONNECTORS[kind]
    sent = []
    for name, member in members.items():
        if name in SECRETS:
            sent.append(inside(member, number(1, 1), text(2, f"THE_{name}")))
        else:
            sent.append(number(member, 5433) if name == "port" else text(member, f"the {name}"))
    (found,) = read(dataset(), source(place, *sent)).sources
    assert found.connector.type == kind
    config = found.connector.config
    assert config.keys() == members.keys()
    for name, value in config.items():
        if name in SECRETS:
            assert (value.kind, value.value.get_secret_value()) == ("env", f"THE_{name}")
        else:
            assert value == (5433 if name == "port" else f"the {name}")


@pytest.mark.parametrize(("sent", "kind"), [(0, "literal"), (1, "env"), (2, "arn"), (3, "name")])
def test_every_kind_of_secret_is_read(sent, kind):
    (found,) = read(dataset(), source(11, text(4, "t"), inside(6, number(1, sent), text(2, "s")))).sources
    assert found.connector.config["password"].kind == kind


def test_a_secret_that_is_not_sent_is_the_empty_one_the_json_body_has():
    (found,) = read(dataset(), source(11, text(4, "t"))).sources
    password = found.connector.config["password"]
    assert (password.kind, password.value.get_secret_value()) == ("literal", "")


def test_a_secret_of_an_unknown_kind_is_a_problem_that_does_not_show_it():
    with pytest.raises(DefinitionError) as caught:
        read(dataset(), source(11, inside(6, number(1, 9), text(2, "hunter2"))))
    assert "hunter2" not in str(caught.value)


def test_a_source_without_a_connector_is_a_problem():
    bare = inside(5, text(1, "Sale"), text(5, "append"))
    (found,) = read(dataset(), bare).sources
    assert found.connector.type == "of a kind this schema does not have"  # which the plan refuses by that name


def test_a_transform_and_a_callable_filter_are_read():
    code = inside(2, text(1, "adapter"), text(2, "def adapter(df):\n    return df\n"))
    transform, kept = steps(inside(4, code), inside(3, code))[:2]
    assert isinstance(transform, TransformStep)
    assert transform.code.entry_point == "adapter"
    assert isinstance(kept, FilterCodeStep)
    assert kept.code.entry_point == "adapter_kept"


def test_options_of_an_aggregate_that_are_not_sent_keep_their_defaults():
    spec = inside(3, text(1, "last_k"), text(2, "shop"), text(3, "1d"), text(4, "last"))
    given = inside(3, text(1, "last_k"), text(2, "shop"), text(3, "1d"), text(4, "three"), number(6, 3), number(8, 0))
    step = inside(5, inside(2, text(2, "shop"), spec, given))
    body = inside(3, text(1, "p"), number(2, 1), text(3, "Sale"), text(4, "Stats"), step)
    plain, three = (each.aggregate for each in read(dataset(), body).pipelines[0].last_step.aggregates)
    assert (three.k, three.dropnull) == (3, False)
    assert plain.k != 3


@pytest.mark.parametrize(
    "operator", [inside(5, text(2, "shop")), inside(9, b""), b""], ids=["group_by", "new", "empty"]
)
def test_an_operator_that_is_not_offered_is_told_in_the_words_the_stock_client_waits_for(operator):
    with pytest.raises(DefinitionError, match="Unsupported operator"):
        steps(operator)


def test_an_expression_that_is_not_known_is_a_problem():
    assert codes(dataset(), pipeline(inside(7, text(2, "x"), inside(3, inside(9, b""))))) == ["unsupported_expression"]


def test_members_and_messages_nobody_knows_are_ignored():
    strange = text(99, "new") + number(98, 7)
    plain = read(dataset(), source(12, text(1, "b")))
    assert read(strange, dataset(strange), source(12, text(1, "b"), strange)) == plain


def test_backfills_are_refused_only_where_that_is_said():
    assert [read(dataset(), part).backfill for part in (b"", number(7, 1), number(7, 0))] == [True, True, False]


def test_a_pipelines_own_backfill_is_read():
    own = inside(7, number(1, 1), text(2, "2026-06-01T00:00:00Z"))
    assert read(dataset(), pipeline(more=own)).pipelines[0].backfill.since_us == 1_780_272_000_000_000


def test_narrowing_of_retention_is_allowed_where_it_is_said():
    assert [read(dataset(), part).allow_retention_narrowing for part in (b"", number(6, 1))] == [False, True]


def test_an_expectation_keeps_zero_apart_from_nothing():
    rules = [
        inside(6, text(1, "column_values_between"), text(2, "shop"), double(3, 0.5), double(4, 0.0)),
        inside(6, text(1, "column_values_in_set"), text(2, "shop"), text(6, "a"), text(6, "b")),
    ]
    between, among = read(dataset(*rules)).datasets[0].expectations
    assert (between.min_value, between.max_value, between.mostly) == (0.0, None, 0.5)
    assert (among.values, among.mostly) == (("a", "b"), 1.0)


@pytest.mark.parametrize(
    "body",
    [b"\x0a", BODY[:-3], b"\xff" * 20, b'{"datasets": []}', text(1, "x")[:-1] + b"\xff", inside(2, b"\xff\xff")],
    ids=["cut tag", "cut body", "noise", "json", "not utf-8", "noise inside"],
)
def test_bytes_that_are_no_commit_are_refused_without_the_words_that_ask_for_json(body):
    with pytest.raises(InvalidRequest, match=r"not a thyme\.CommitRequest") as caught:
        tree_of(body)
    assert "Unsupported operator" not in str(caught.value)


def test_a_predicate_nested_beyond_reason_is_refused():
    nested = inside(2, text(1, "x"))
    for _ in range(5_000):
        nested = inside(3, number(1, 3), inside(2, nested))
    with pytest.raises(InvalidRequest):
        tree_of(pipeline(inside(3, inside(3, nested))))


def test_a_receipt_is_written_as_the_message_the_sdk_reads():
    receipt = CommitReceipt(
        commit_id="abc",
        no_op=False,
        datasets=4,
        pipelines=3,
        featuresets=2,
        sources=1,
        jobs_created=5,
        topics_created=("A_topic", "B_topic"),
        changes=Changes(),
    )
    expected = text(1, "abc") + number(2, 4) + number(3, 3) + number(4, 2) + number(5, 5)
    assert response_of(receipt) == expected + text(6, "A_topic") + text(6, "B_topic")


def test_every_message_of_the_schema_can_be_made():
    assert message("CommitRequest").SerializeToString() == b""
