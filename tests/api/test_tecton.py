"""Tecton's feature service on a real listener over real stores: one row of the contract, one test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import httpx2
import pytest
import tecton_client
from tecton_client import exceptions as refused

from cluster.processes import wait_until
from featurelib.clock import DAY
from featurelib.compile import compile_module
from featurelib.stores.keys import NewKey
from featurelib.stores.principals import Author
from featurelib.stores.role_assignments import Assignment, Holder
from featurelib.stores.standings import Resource
from serve_apps.services import AccessStores
from tests.api.tecton import EXAMPLE, READ, Served, ask_anew, started
from tests.support.patience import PATIENCE_S

SERVICE = "fraud_detection_feature_service"
BATCH = "/api/v1/feature-service/get-features-batch"
METADATA = "/api/v1/feature-service/metadata"
QUERY = "/api/v1/feature-service/query-features"
STATE = "/api/v1/feature-service/get-feature-service-state"
NAMES = [
    "UserPayments.payments_24h",
    "UserPayments.spent_7d",
    "UserPayments.mean_30d",
    "UserPayments.last_payment_at",
    "UserPayments.last_merchants",
    "UserPayments.last_amounts",
    "UserProfile.country",
    "UserProfile.is_verified",
    "UserProfile.member_since",
    "PaymentRisk.times_the_mean",
    "PaymentRisk.is_unusual",
]
# 4.5, 30 and 5.5 within the last 30 days, the newest first; the last of the three was two days ago.
OF_U1 = [
    "2",
    40.0,
    40.0 / 3,
    "2026-03-01T11:00:00Z",
    ["bakery", "books", "bakery"],
    [4.5, 30.0, 5.5],
    "NO",
    True,
    "2025-01-25T12:00:00Z",
    7.5,
    True,
]

MORE = """
from datetime import datetime
from featurelib import *

@dataset(index=True)
class Shown:
    shown: str = field(key=True)
    user_id: str = field()
    ad: int = field()
    at: datetime = field(timestamp=True)

@dataset(index=True)
class OfPair:
    pair: str = field(key=True)
    times: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Shown)
    def by_pair(cls, shown):
        return shown.groupby("user_id", "ad").aggregate(times=Count(window="7d"))

@dataset(index=True)
class OfTime:
    pair: str = field(key=True)
    times: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Shown)
    def by_time(cls, shown):
        return shown.groupby("user_id", "at").aggregate(times=Count(window="7d"))

@dataset(index=True)
class OfUser:
    user_id: str = field(key=True)
    ads: list[int] = field()
    moments: list[datetime] = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Shown)
    def by_user_ads(cls, shown):
        return shown.dedup("shown").groupby("user_id").aggregate(
            ads=Distinct(of="ad", window="7d"), moments=Distinct(of="at", window="7d")
        )

@featureset
class Pair:
    pair: str = feature()
    times: int = feature(ref=OfPair.times)

@featureset
class UserAds:
    user_id: str = feature()
    ads: list[int] = feature(ref=OfUser.ads)

@featureset
class UserMoments:
    user_id: str = feature()
    moments: list[datetime] = feature(ref=OfUser.moments)

@featureset
class Moment:
    pair: str = feature()
    times: int = feature(ref=OfTime.times)

@featureset
class Broken:
    user_id: str = feature()
    inverse: float = feature()

    @extractor
    @extractor_inputs("user_id")
    @extractor_outputs("inverse")
    def invert(cls, ts, user_id):
        return 1 / 0

ads = FeatureService(
    "ads", [Slice(Pair, join_keys=["user_id", "ad"])], join_keys={"user_id": str, "ad": int},
    wildcard=Wildcard("ad", UserAds.ads), workspace="ads",
)
moments = FeatureService(
    "moments", [Slice(Moment, join_keys=["user_id", "at"])], join_keys={"user_id": str, "at": datetime},
    wildcard=Wildcard("at", UserMoments.moments), workspace="ads",
)
pairs = FeatureService(
    "pairs", [Slice(Pair, join_keys=["user_id", "ad"])], join_keys={"user_id": str, "ad": int}, workspace="ads"
)
@featureset
class Strict:
    user_id: str = feature()
    amount: float = feature(request=True)
    twice: float = feature()

    @extractor
    @extractor_inputs("amount")
    @extractor_outputs("twice")
    def double(cls, ts, amount):
        return None if amount is None else 2 * amount

broken = FeatureService("broken", [Broken], workspace="ads")
strict = FeatureService("strict", [Strict], workspace="ads")
same = FeatureService("fraud_detection_feature_service", [UserAds], workspace="ads")
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory, module_redis, migrated) -> Iterator[Served]:
    """The example, committed and loaded, and a few services more."""
    shown = [{"shown": f"s{n}", "user_id": "u1", "ad": ad, "at": "2026-03-01T10:00:00Z"} for n, ad in enumerate("112")]
    folder = tmp_path_factory.mktemp("tecton")
    with started(folder, module_redis.url, migrated, MORE, {"Shown": shown}) as made:
        yield made


U1 = {"featureServiceName": SERVICE, "workspaceName": "prod", "joinKeyMap": {"user_id": "u1"}}
U1 |= {"requestContextMap": {"amount": 100.0}}


def test_u1_is_read_with_every_type_in_its_encoding(served):
    answer = served.read(**U1).json()
    assert answer["result"] == {"features": OF_U1}
    assert [each["name"] for each in answer["metadata"]["features"]] == NAMES
    assert [each["dataType"]["type"] for each in answer["metadata"]["features"]] == [
        "int64",
        "float64",
        "float64",
        "timestamp",
        "array",
        "array",
        "string",
        "boolean",
        "timestamp",
        "float64",
        "boolean",
    ]


@pytest.mark.parametrize(
    ("option", "member", "of_first"),
    [
        ("includeNames", "name", NAMES[0]),
        ("includeDataTypes", "dataType", {"type": "int64"}),
        ("includeTypes", "type", "int64"),
        ("includeEffectiveTimes", "effectiveTime", "2026-03-01T11:00:00Z"),
        ("includeServingStatus", "status", "PRESENT"),
        ("includeFeatureDescriptions", "description", "payments of the last 24 hours"),
        ("includeFeatureTags", "tags", {"team": "payments"}),
    ],
)
def test_each_metadata_option_adds_its_member_and_nothing_else(served, option, member, of_first):
    nothing = {"includeNames": False, "includeDataTypes": False}
    chosen = served.read(**U1, metadataOptions={**nothing, option: True}).json()["metadata"]
    assert list(chosen) == ["features"]
    assert [list(each) for each in chosen["features"][:9]] == [[member]] * 9
    assert chosen["features"][0][member] == of_first


def test_without_options_names_and_types_are_told_and_false_wins(served):
    assert set(served.read(**U1).json()["metadata"]["features"][0]) == {"name", "dataType"}
    assert set(served.read(**U1, metadataOptions={}).json()["metadata"]["features"][0]) == {"name", "dataType"}
    neither = {"includeNames": False, "includeDataTypes": False}
    assert served.read(**U1, metadataOptions=neither).json() == {"result": {"features": OF_U1}}


def test_slo_info_is_measured(served):
    ask_anew(served)
    info = served.read(**U1, metadataOptions={"includeSloInfo": True}).json()["metadata"]["sloInfo"]
    assert info["sloEligible"] is True or info["sloIneligibilityReasons"]
    assert 0 < info["storeMaxLatency"] <= info["storeTimeSeconds"]
    assert 0 < info["sloServerTimeSeconds"] <= info["serverTimeSeconds"]
    assert info["storeResponseSizeBytes"] > 100
    assert info["dynamodbResponseSizeBytes"] == 0


def test_effective_times_name_the_newest_event_of_each_feature_and_none_for_computed_ones(served):
    told = served.read(**U1, metadataOptions={"includeEffectiveTimes": True}).json()["metadata"]["features"]
    found = {each["name"]: each.get("effectiveTime") for each in told}
    assert found["UserPayments.spent_7d"] == "2026-03-01T11:00:00Z"
    assert found["UserProfile.country"] == "2026-01-30T12:00:00Z"
    assert found["PaymentRisk.is_unusual"] == "2026-03-01T11:00:00Z"  # made of a looked-up mean
    nobody = served.read(**{**U1, "joinKeyMap": {"user_id": "u9"}}, metadataOptions={"includeEffectiveTimes": True})
    assert all("effectiveTime" not in each for each in nobody.json()["metadata"]["features"])


def statuses_of(answer: httpx2.Response) -> dict[str, Any]:
    features = answer.json()["metadata"]["features"]
    return {each["name"]: each["status"] for each in features}


def test_an_unknown_entity_is_missing_and_one_with_an_empty_window_is_present(served):
    asked = {"metadataOptions": {"includeServingStatus": True}}
    unknown = served.read(**{**U1, "joinKeyMap": {"user_id": "u9"}}, **asked)
    assert unknown.status_code == 200
    assert unknown.json()["result"]["features"][:9] == [None] * 9
    assert set(statuses_of(unknown).values()) == {"MISSING_DATA"}
    quiet = served.read(**{**U1, "joinKeyMap": {"user_id": "u2"}}, **asked)
    assert statuses_of(quiet)["UserPayments.payments_24h"] == "PRESENT"
    assert quiet.json()["result"]["features"][:2] == ["0", 0.0]
    never_paid = served.read(**{**U1, "joinKeyMap": {"user_id": "u3"}}, **asked)
    assert statuses_of(never_paid)["UserPayments.payments_24h"] == "MISSING_DATA"
    assert statuses_of(never_paid)["UserProfile.country"] == "PRESENT"


def test_a_null_join_key_is_allowed_and_reads_nothing(served):
    asked = {**U1, "joinKeyMap": {"user_id": None}, "metadataOptions": {"includeServingStatus": True}}
    answer = served.read(**asked)
    assert answer.json()["result"]["features"] == [None] * len(NAMES)
    assert set(statuses_of(answer).values()) == {"MISSING_DATA"}


@pytest.mark.parametrize("option", ["readFromCache", "writeToCache"])
@pytest.mark.parametrize("value", [True, False])
def test_cache_options_change_no_value(served, option, value):
    assert served.read(**U1, requestOptions={option: value}).json()["result"] == {"features": OF_U1}


def test_null_counts_become_zero_when_asked(served):
    unknown = {**U1, "joinKeyMap": {"user_id": "u9"}}
    assert served.read(**unknown).json()["result"]["features"][0] is None
    coerced = served.read(**unknown, requestOptions={"coerceNullCountsToZero": True}).json()["result"]["features"]
    assert coerced[:2] == ["0", None]


def test_extra_request_context_is_refused_unless_it_is_to_be_ignored(served):
    extra = {**U1, "requestContextMap": {"amount": 100.0, "colour": {"deep": [{"er": 1}]}}}
    refusal = served.read(**extra)
    assert (refusal.status_code, "Unknown key: colour" in refusal.json()["message"]) == (400, True)
    ignoring = served.read(**extra, requestOptions={"ignoreExtraRequestContextFields": True})
    assert ignoring.json()["result"] == {"features": OF_U1}


@pytest.mark.parametrize("given", [None, "NaN", "Infinity", "-Infinity"])
def test_a_null_in_the_request_context_and_what_is_no_number_are_read_as_null(served, given):
    answer = served.read(**{**U1, "requestContextMap": {"amount": given}})
    assert answer.json()["result"] == {"features": [*OF_U1[:9], None, True]}


@pytest.mark.parametrize("given", ["1e400", "-1e400", "1_0", "inf", "nan", "infinity", "", "1.5x"])
def test_a_text_that_is_no_number_of_the_wire_is_refused(served, given):
    answer = served.read(**{**U1, "requestContextMap": {"amount": given}})
    assert (answer.status_code, answer.json()["code"]) == (400, 3)


@pytest.mark.parametrize("given", [None, "NaN", "Infinity", "-Infinity"])
def test_null_is_a_value_of_every_request_feature_and_a_run_of_it_can_be_replayed(served, given):
    answer = served.read(**strictly(given))
    assert answer.json()["result"] == {"features": [None]}
    admin = {"Authorization": f"Bearer {served.platform.keys['admin'][1]}"}
    with httpx2.Client(base_url=served.url, headers=admin, timeout=PATIENCE_S) as http:
        run = answer.headers["x-query-run-id"]
        _once_written(http, run)
        replayed = http.post(f"/query-runs/{run}/replay", params={"knowledge": "as_served"}).json()
    assert set(replayed["features"].values()) == {"same"}


def test_a_pinned_watermark_reads_the_past(served):
    options = {"requestOptions": {"highWatermarkOverride": "2026-03-01T08:00:00Z"}}
    told = {"metadataOptions": {"includeEffectiveTimes": True, "includeServingStatus": True}}
    answer = served.read(**U1, **options, **told)
    assert answer.json()["result"]["features"][:2] == ["1", 35.5]
    assert answer.json()["metadata"]["features"][0]["effectiveTime"] == "2026-03-01T07:00:00Z"
    assert statuses_of(answer)["UserPayments.payments_24h"] == "PRESENT"


@pytest.mark.parametrize("options", [{}, {"highWatermarkOverride": "2026-03-01T11:00:00Z"}])
def test_effective_times_are_known_of_pipelines_that_remember_rows_too(served, options):
    asked = {"featureServiceName": SERVICE, "workspaceName": "ads", "joinKeyMap": {"user_id": "u1"}}
    answer = served.read(**asked, requestOptions=options, metadataOptions={"includeEffectiveTimes": True}).json()
    assert answer["result"]["features"] == [["1", "2"]]
    assert answer["metadata"]["features"][0]["effectiveTime"] == "2026-03-01T10:00:00Z"


@pytest.mark.parametrize("edge", ["AGGREGATION_MODE_LATEST_EVENT_TIME", "LATEST_EVENT_TIME"])
def test_windows_may_end_at_the_newest_event(served, edge):
    # A day after the newest event nothing of it is left by the wall's clock, and everything by the events'.
    served.platform.clock.advance(DAY)
    try:
        wall = served.read(**U1, requestOptions={"aggregationLeadingEdge": "AGGREGATION_MODE_WALL_CLOCK_TIME"})
        events = served.read(**U1, requestOptions={"aggregationLeadingEdge": edge})
    finally:
        served.platform.clock.advance(-DAY)
    assert [each.json()["result"]["features"][0] for each in (wall, events)] == ["0", "2"]


def test_a_generous_budget_leaves_nothing_out(served):
    options = {"requestOptions": {"latencyBudgetMs": 60_000}, "metadataOptions": {"includeServingStatus": True}}
    answer = served.read(**U1, **options)
    assert set(statuses_of(answer).values()) == {"PRESENT"}
    assert answer.json()["result"] == {"features": OF_U1}


def test_both_spellings_mix_and_no_content_type_is_needed(served):
    body = {
        "params": {
            "feature_service_name": SERVICE,
            "workspaceName": "prod",
            "join_key_map": {"user_id": "u1"},
            "request_context_map": {"amount": 100},
            "metadata_options": {"include_names": False, "includeDataTypes": False},
            "request_options": {"coerceNullCountsToZero": True},
        }
    }
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d sends
    answer = served.http.post(READ, content=json.dumps(body), headers=form)
    assert answer.json() == {"result": {"features": OF_U1}}


def test_a_service_is_found_by_its_id_and_by_name_with_version(served):
    service = compile_module(EXAMPLE).feature_services[0]
    by_id = {"featureServiceId": service.id, "workspaceName": "prod", "joinKeyMap": {"user_id": "u1"}}
    assert served.read(**by_id, requestContextMap={"amount": 100.0}).json()["result"] == {"features": OF_U1}
    by_version = {**U1, "featureServiceName": f"{SERVICE}:v1"}
    assert served.read(**by_version).json()["result"] == {"features": OF_U1}
    assert served.read(**{**U1, "featureServiceName": f"{SERVICE}:v2"}).status_code == 404


def test_one_name_in_two_workspaces_is_two_services(served):
    other = served.read(**{**U1, "workspaceName": "ads", "requestContextMap": {}}).json()
    assert [each["name"] for each in other["metadata"]["features"]] == ["UserAds.ads"]
    assert other["result"]["features"] == [["1", "2"]]


def test_a_feature_view_is_read_by_itself_with_every_feature(served):
    view = {**U1, "featureServiceName": None, "featureViewName": "UserProfile", "requestContextMap": {}}
    answer = served.read(**view).json()
    assert [each["name"] for each in answer["metadata"]["features"]] == NAMES[6:9]
    assert answer["result"] == {"features": OF_U1[6:9]}
    described = {"featureViewName": "PaymentRisk", "workspaceName": "prod"}
    told = served.read(METADATA, **described).json()
    assert told["inputJoinKeys"] == [{"name": "user_id", "dataType": {"type": "string"}}]
    assert told["inputRequestContextKeys"] == [{"name": "amount", "dataType": {"type": "float64"}}]
    risk = served.read(**{**U1, **described, "featureServiceName": None}).json()
    assert risk["result"] == {"features": OF_U1[9:]}


def batch_of(*users: Any) -> dict[str, Any]:
    rows = [{"joinKeyMap": {"user_id": user}, "requestContextMap": {"amount": 100.0}} for user in users]
    return {"featureServiceName": SERVICE, "workspaceName": "prod", "requestData": rows}


def test_a_batch_answers_in_order_and_each_row_as_alone(served):
    users = ["u2", "u1", None, "u9", "u1"]
    answer = served.read(BATCH, **batch_of(*users), metadataOptions={"includeServingStatus": True}).json()
    alone = [served.read(**{**U1, "joinKeyMap": {"user_id": user}}).json()["result"] for user in users]
    assert answer["result"] == alone
    first = answer["metadata"]["features"][0]
    assert first["status"] == ["PRESENT", "PRESENT", "MISSING_DATA", "MISSING_DATA", "PRESENT"]
    assert (first["name"], first["dataType"]) == (NAMES[0], {"type": "int64"})


def test_rows_of_a_batch_have_a_context_of_their_own(served):
    asked = batch_of("u1", "u1")
    asked["requestData"][1]["requestContextMap"] = {"amount": "20"}
    rows = served.read(BATCH, **asked).json()["result"]
    assert [row["features"][9] for row in rows] == [7.5, 1.5]


def test_a_batch_says_what_each_row_and_the_whole_took(served):
    answer = served.read(BATCH, **batch_of("u1", "u2"), metadataOptions={"includeSloInfo": True}).json()["metadata"]
    assert len(answer["sloInfo"]) == 2
    measured = {"sloEligible", "sloServerTimeSeconds", "serverTimeSeconds", "storeMaxLatency"}
    assert set(answer["batchSloInfo"]) - {"sloIneligibilityReasons"} == measured


def test_metadata_says_what_a_service_takes_and_gives(served):
    answer = served.read(METADATA, featureServiceName=SERVICE, workspaceName="prod").json()
    assert answer == {
        "featureServiceType": "DEFAULT",
        "inputJoinKeys": [{"name": "user_id", "dataType": {"type": "string"}}],
        "inputRequestContextKeys": [{"name": "amount", "dataType": {"type": "float64"}}],
        "featureValues": [
            {"name": each["name"], "dataType": each["dataType"]}
            for each in served.read(**U1).json()["metadata"]["features"]
        ],
    }


ADS = {"featureServiceName": "ads", "workspaceName": "ads", "joinKeyMap": {"user_id": "u1"}}


def test_a_wildcard_gives_a_row_for_every_value_of_the_key_left_out(served):
    answer = served.read(QUERY, **ADS).json()
    assert answer["results"] == [{"features": ["2"], "joinKeys": ["1"]}, {"features": ["1"], "joinKeys": ["2"]}]
    assert answer["metadata"]["joinKeys"] == [{"name": "ad", "dataType": {"type": "int64"}}]
    assert answer["metadata"]["features"] == [{"name": "Pair.times", "dataType": {"type": "int64"}}]
    told = served.read(METADATA, featureServiceName="ads", workspaceName="ads").json()
    assert told["featureServiceType"] == "WILDCARD"
    assert told["inputJoinKeys"] == [{"name": "user_id", "dataType": {"type": "string"}}]
    assert told["outputJoinKeys"] == answer["metadata"]["joinKeys"]


@pytest.mark.parametrize("sent", [{}, {"at": "2026-03-01T11:00:00+01:00"}, {"at": "2026-03-01T10:00:00Z"}])
def test_an_instant_is_a_join_key_that_may_be_sent_or_left_out(served, sent):
    asked = {**ADS, "featureServiceName": "moments", "joinKeyMap": {"user_id": "u1", **sent}}
    answer = served.read(QUERY, **asked).json()
    assert answer["results"] == [{"features": ["3"], "joinKeys": ["2026-03-01T10:00:00Z"]}], answer
    assert answer["metadata"]["joinKeys"] == [{"name": "at", "dataType": {"type": "timestamp"}}]


def test_a_wildcard_read_measures_and_records_the_reading_of_the_key_too(served):
    asked = {"metadataOptions": {"includeSloInfo": True}}
    sizes, runs = [], []
    for key in ({"ad": "1"}, {}):
        ask_anew(served)
        answer = served.read(QUERY, **{**ADS, "joinKeyMap": {"user_id": "u1", **key}}, **asked)
        sizes.append(answer.json()["metadata"]["sloInfo"]["storeResponseSizeBytes"])
        runs.append(len(answer.headers["x-query-run-id"].split(",")))
    # Two rows of the pairs, and the row of the user that names them.
    assert runs == [1, 2]
    assert sizes[1] > 2 * sizes[0]


def test_a_wildcard_read_of_nobody_is_empty_and_one_with_the_key_is_a_row(served):
    assert served.read(QUERY, **{**ADS, "joinKeyMap": {"user_id": "u9"}}).json()["results"] == []
    one = served.read(QUERY, **{**ADS, "joinKeyMap": {"user_id": "u1", "ad": "2"}}).json()
    assert one["results"] == [{"features": ["1"], "joinKeys": ["2"]}]


def test_the_state_of_a_service_is_an_empty_object(served):
    locator = {"featureServiceName": SERVICE, "workspaceName": "prod"}
    assert served.http.post(STATE, json={"featureServiceLocator": locator}).json() == {}
    unknown = served.http.post(STATE, json={"featureServiceLocator": {**locator, "workspaceName": "test"}})
    assert (unknown.status_code, unknown.json()["code"]) == (404, 5)


def changed(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in {**U1, **members}.items() if value is not ...}


def in_context(amount: Any) -> dict[str, Any]:
    return changed(requestContextMap={"amount": amount})


def strictly(amount: Any) -> dict[str, Any]:
    return {**in_context(amount), "featureServiceName": "strict", "workspaceName": "ads"}


def of_ad(ad: Any) -> dict[str, Any]:
    return {"featureServiceName": "pairs", "workspaceName": "ads", "joinKeyMap": {"user_id": "u1", "ad": ad}}


BAD = {
    "a missing join key": (changed(joinKeyMap={}), 400, 3, "Missing required join key: user_id"),
    "an extra join key": (
        changed(joinKeyMap={"user_id": "u1", "shop": "s"}),
        400,
        3,
        "Unknown join key: shop, expected one of: [user_id]",
    ),
    "no context": (changed(requestContextMap=...), 400, 3, "Expected key not found: [amount] in requestContextMap"),
    "a number as a string key": (
        changed(joinKeyMap={"user_id": 7}),
        400,
        3,
        "Unexpected JSON type for user_id in joinKeyMap. Expected string or null.",
    ),
    "a list as a key": (changed(joinKeyMap={"user_id": ["u1"]}), 400, 3, "Unexpected JSON type for user_id"),
    "text as an int64 key": (
        of_ad("one"),
        400,
        3,
        "Unexpected JSON type for ad in joinKeyMap. Expected int64 or null.",
    ),
    "a float as an int64 key": (
        of_ad(1.5),
        400,
        3,
        "Expected int64 or null.",
    ),
    "a bool as an int64 key": (
        of_ad(True),
        400,
        3,
        "Expected int64 or null.",
    ),
    "an int64 key beyond 64 bits": (
        of_ad("9223372036854775808"),
        400,
        3,
        "int64",
    ),
    "text as a float": (
        in_context("much"),
        400,
        3,
        "Unexpected JSON type for amount in requestContextMap. Expected float64 or null.",
    ),
    "text as a float that is not null": (
        strictly("much"),
        400,
        3,
        "Unexpected JSON type for amount in requestContextMap. Expected float64 or null.",
    ),
    "a deep struct": (
        in_context({"a": {"b": []}}),
        400,
        3,
        "Unexpected JSON type for amount",
    ),
    "a list of keys": (changed(joinKeyMap=[]), 400, 3, "Unexpected JSON type for joinKeyMap. Expected object."),
    "both name and id": (changed(featureServiceId="0" * 32), 400, 3, "exactly one of featureServiceName"),
    "both a service and a view": (
        changed(featureViewName="UserPayments"),
        400,
        3,
        "found featureServiceName and featureViewName",
    ),
    "an unknown feature view": (
        changed(featureServiceName=..., featureViewName="nothing"),
        404,
        5,
        "Cannot retrieve features. FeatureView: nothing has no materialized data in the online store.",
    ),
    "a feature view of another workspace": (
        changed(featureServiceName=..., featureViewName="UserAds"),
        404,
        5,
        "FeatureView: UserAds has no materialized data",
    ),
    "neither name nor id": (changed(featureServiceName=...), 400, 3, "found neither"),
    "no workspace": (changed(workspaceName=...), 400, 3, "workspaceName: missing"),
    "a number for the name": (changed(featureServiceName=7), 400, 3, "Unexpected JSON type for featureServiceName"),
    "an unknown service": (
        changed(featureServiceName="nothing"),
        404,
        5,
        "Unable to query FeatureService nothing for workspace prod",
    ),
    "an unknown workspace": (changed(workspaceName="test"), 404, 5, f"Unable to query FeatureService {SERVICE}"),
    "an unknown id": (changed(featureServiceName=..., featureServiceId="0" * 32), 404, 5, "Unable to query"),
    "an option that is no bool": (changed(metadataOptions={"includeNames": "yes"}), 400, 3, "Expected bool or null."),
    "a budget below 100": (changed(requestOptions={"latencyBudgetMs": 99}), 400, 3, "expected 100 or more"),
    "a budget that is no number": (changed(requestOptions={"latencyBudgetMs": "1s"}), 400, 3, "Expected int32"),
    "an unknown leading edge": (changed(requestOptions={"aggregationLeadingEdge": "NOON"}), 400, 3, "WALL_CLOCK_TIME"),
    "a watermark that is no instant": (
        changed(requestOptions={"highWatermarkOverride": "soon"}),
        400,
        3,
        "highWatermark",
    ),
    "user code that fails": (
        {"featureServiceName": "broken", "workspaceName": "ads", "joinKeyMap": {"user_id": "u1"}},
        500,
        13,
        "division by zero",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_read_is_refused_with_the_documented_words_and_code(served, name):
    params, status, code, words = BAD[name]
    answer = served.read(**params)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (status, code), told
    assert words in told["message"]
    assert set(told) == {"error", "message", "code"}
    assert told["error"] == told["message"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{}] * 11, "Batch size 11 exceeds maximum of 10."),
        ([], "requestData: empty"),
        ("u1", "Expected array of objects."),
        (["u1"], "Expected array of objects."),
        ([{"joinKeyMap": {"user_id": "u1"}}], "Expected key not found: [amount]"),
    ],
)
def test_a_bad_batch_is_refused(served, rows, words):
    answer = served.read(BATCH, **{**batch_of(), "requestData": rows})
    assert (answer.status_code, answer.json()["code"]) == (400, 3)
    assert words in answer.json()["message"]


def test_a_wildcard_read_of_a_service_without_one_is_refused(served):
    answer = served.read(QUERY, **U1)
    assert (answer.status_code, answer.json()["code"]) == (400, 9)
    assert "no wildcard join key" in answer.json()["message"]


@pytest.mark.parametrize("name", ["nothing", "nothing:v3"])
def test_metadata_of_an_unknown_service_names_it(served, name):
    answer = served.read(METADATA, featureServiceName=name, workspaceName="prod")
    assert (answer.status_code, answer.json()["code"]) == (404, 5)
    assert f"Unknown feature_service_name: {name}" in answer.json()["message"]


FRAMEWORK = {
    "malformed JSON": ("POST", READ, b"{", 400, 3),
    "an array": ("POST", READ, b"[]", 400, 3),
    "no params": ("POST", READ, b"{}", 400, 3),
    "nested without end": ("POST", READ, b'{"params":' + b"[" * 5_000, 400, 3),
    "bytes that are no UTF-8": ("POST", READ, b'{"params": "\xff"}', 400, 3),
    "a body above the limit": ("POST", READ, b" " * 65_537, 413, 8),
    "no such route": ("POST", "/api/v1/feature-service/nothing", b"{}", 404, 5),
    "no such method": ("GET", READ, b"", 405, 12),
}


@pytest.mark.parametrize("name", FRAMEWORK)
def test_failures_of_the_framework_have_the_same_body(served, name):
    method, path, body, status, code = FRAMEWORK[name]
    answer = served.http.request(method, path, content=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["error"] == answer.json()["message"] != ""


@pytest.mark.parametrize("scheme", ["Tecton-key", "tecton-KEY", "Tecton-Key", "Bearer"])
def test_the_scheme_is_read_in_any_case(served, scheme):
    headers = {"Authorization": f"{scheme} {served.key}"}
    assert httpx2.post(served.url + READ, json={"params": U1}, headers=headers, timeout=PATIENCE_S).is_success


@pytest.mark.parametrize("header", [None, "Tecton-key", "Tecton-key wrong", "Basic dTpw"])
def test_without_a_valid_key_the_message_names_the_header(served, header):
    headers = {} if header is None else {"Authorization": header}
    answer = httpx2.post(served.url + READ, json={"params": U1}, headers=headers, timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()["code"]) == (401, 16)
    assert "invalid 'Tecton-key' authorization header" in answer.json()["message"]


def test_every_read_is_recorded_with_a_run_per_view_that_can_be_replayed(served):
    answer = served.read(**U1)
    runs = answer.headers["x-query-run-id"].split(",")
    assert len(runs) == 3
    admin = {"Authorization": f"Bearer {served.platform.keys['admin'][1]}"}
    with httpx2.Client(base_url=served.url, headers=admin, timeout=PATIENCE_S) as http:
        for run, featureset in zip(runs, ["UserPayments", "UserProfile", "PaymentRisk"], strict=True):
            replayed = _once_written(http, run)
            assert replayed["featureset"] == featureset
            verdicts = http.post(f"/query-runs/{run}/replay", params={"knowledge": "as_served"}).json()["features"]
            assert set(verdicts.values()) == {"same"}


def _once_written(http: httpx2.Client, run: str) -> dict[str, Any]:
    assert wait_until(lambda: http.get(f"/query-runs/{run}").is_success, PATIENCE_S, every_s=0.02)
    return http.get(f"/query-runs/{run}").json()


class TestThePublishedClient:
    """``tecton-client`` against the running service."""

    def test_it_reads_features_as_its_readme_does(self, served):
        answer = served.client().get_features(
            feature_service_name=SERVICE, join_key_map={"user_id": "u1"}, request_context_map={"amount": 100.0}
        )
        assert answer.result.features == OF_U1
        assert answer.get_features_dict() == dict(zip(NAMES, [2, *OF_U1[1:]], strict=True))
        assert answer.slo_info is None

    def test_it_understands_every_option(self, served):
        answer = served.client().get_features(
            feature_service_name=SERVICE,
            join_key_map={"user_id": "u1"},
            request_context_map={"amount": 100.0},
            metadata_options=tecton_client.MetadataOptions.all(),
            request_options=tecton_client.RequestOptions(True, True, True, 60_000, True),
            allow_partial_results=True,
        )
        assert answer.slo_info.store_response_size_bytes > 0
        assert set(answer.metadata["features"][0]) == {
            "name",
            "dataType",
            "status",
            "effectiveTime",
            "description",
            "tags",
        }

    def test_it_reads_metadata(self, served):
        answer = served.client().get_feature_service_metadata(feature_service_name=SERVICE)
        assert [each["name"] for each in answer.feature_values] == NAMES
        assert answer.input_join_keys[0]["name"] == "user_id"
        assert answer.input_request_context_keys[0]["name"] == "amount"

    def test_its_asynchronous_form_does_the_same(self, served):
        async def read() -> Any:
            asked = {"join_key_map": {"user_id": "u1"}, "request_context_map": {"amount": 100.0}}
            async with httpx.AsyncClient() as http:
                client = tecton_client.AsyncTectonClient(served.url, served.key, "prod", http)
                metadata = await client.get_feature_service_metadata(feature_service_name=SERVICE)
                return metadata, await client.get_features(feature_service_name=SERVICE, **asked)

        metadata, answer = asyncio.run(read())
        assert len(metadata.feature_values) == len(answer.result.features) == len(NAMES)

    def test_a_workspace_without_a_role_is_a_forbidden_error_until_it_is_given(self, served):
        access = AccessStores.over(served.platform.registry, served.platform.settings, served.platform.clock)
        access.principals.create("service_account", "reads-ads", {}, Author())
        _, secret = access.keys.create(NewKey(role="reader", label="ads", principal="reads-ads"), Author())
        role = Assignment(Holder("service_account", "reads-ads"), "consumer", Resource("workspace", "ads"))
        access.roles.assign([role], Author())
        client = served.client(secret)
        assert wait_until(lambda: _may(client, "ads"), PATIENCE_S, every_s=0.02)
        with pytest.raises(refused.ForbiddenError, match="Not Authorized"):
            client.get_feature_service_metadata(feature_service_name=SERVICE)
        status = httpx2.get(
            f"{served.url}/api/v1/status", headers={"Authorization": f"Bearer {secret}"}, timeout=PATIENCE_S
        ).json()
        assert {each["workspace"] for each in status["feature_services"]} == {"ads"}


def _may(client: tecton_client.TectonClient, workspace: str) -> bool:
    try:
        client.get_feature_service_metadata(feature_service_name="ads", workspace_name=workspace)
    except (refused.ForbiddenError, refused.UnauthorizedError):
        return False
    return True


def test_services_are_in_the_catalogue_the_status_and_the_lineage(served):
    record = served.http.get(f"/api/v1/feature-services/prod/{SERVICE}").json()
    assert (record["features"], record["version"]) == (NAMES, 1)
    assert record["join_keys"] == [{"name": "user_id", "dtype": "str"}]
    assert record["metadata"]["description"] == "what a payment is judged by"
    listed = {(each["workspace"], each["name"]) for each in served.http.get("/api/v1/feature-services").json()}
    assert listed >= {("prod", SERVICE), ("ads", SERVICE), ("ads", "ads")}
    assert served.http.get("/api/v1/feature-services/prod/ads").status_code == 404
    shown = served.http.get("/api/v1/status").json()["feature_services"]
    assert {"workspace": "prod", "name": SERVICE, "version": 1, "feature_count": len(NAMES)} in shown
    takers = served.http.get("/api/v1/featuresets/UserPayments/dependents").json()
    assert f"prod/{SERVICE}" in {each["name"] for each in takers["dependents"]}


def test_a_service_is_planned_and_a_break_of_it_is_said(served):
    commit = compile_module(EXAMPLE)
    service = commit.feature_services[0]
    fewer = service.model_copy(update={"views": service.views[:1], "request_context": ()})
    other = service.model_copy(update={"workspace": "other"})
    admin = {"Authorization": f"Bearer {served.platform.keys['admin'][1]}"}
    planned = {}
    for name, changed in (("fewer", fewer), ("other", other)):
        body = commit.model_copy(update={"feature_services": (changed,)}).model_dump_json()
        planned[name] = httpx2.post(f"{served.url}/api/v1/plan", content=body, headers=admin, timeout=PATIENCE_S).json()
    assert planned["other"]["changes"]["added"] == [f"feature_service:other/{SERVICE}@1"]
    assert {each["code"] for each in planned["fewer"]["breaks"]} == {"feature_removed", "request_changed"}


def test_what_a_commit_changed_of_a_service_is_told(served):
    newest = served.http.get("/api/v1/commits").json()[0]["id"]
    changed = served.http.get(f"/api/v1/commits/{newest}/diff").json()["definitions"]
    assert ("feature_service", "ads/ads") in {(each["kind"], each["name"]) for each in changed}
