"""Tecton's API row by row: every operation, option and error that clients of it know, one test for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx2
import pytest
import tecton_client
from tecton_client import exceptions as refused

from cluster.processes import wait_until
from featurelib.stores.keys import NewKey
from featurelib.stores.principals import Author
from featurelib.stores.role_assignments import Assignment, Holder
from featurelib.stores.standings import Resource
from serve_apps.services import AccessStores
from serve_apps.tecton_errors import tecton_body
from tests.api.tecton import READ, Served, started
from tests.api.test_tecton import ADS, BATCH, METADATA, MORE, OF_U1, QUERY, SERVICE, STATE, U1, batch_of, of_ad
from tests.support.patience import PATIENCE_S

SECRETS, ROLES = "/api/v1/secrets-service/scopes", "/api/v1/authorization-service"
READER = {"principal_type": "PRINCIPAL_TYPE_SERVICE_ACCOUNT", "principal_id": "rows"}


@pytest.fixture(scope="module")
def served(tmp_path_factory, module_redis, migrated) -> Iterator[Served]:
    """The example and a wildcard service, and a service account that may read one workspace."""
    shown = [{"shown": f"s{n}", "user_id": "u1", "ad": ad, "at": "2026-03-01T10:00:00Z"} for n, ad in enumerate("112")]
    folder = tmp_path_factory.mktemp("rows")
    with started(folder, module_redis.url, migrated, MORE, {"Shown": shown}) as made:
        access = AccessStores.over(made.platform.registry, made.platform.settings, made.platform.clock)
        access.principals.create("service_account", "rows", {}, Author())
        key = access.keys.create(NewKey(role="reader", label="rows", principal="rows"), Author())
        made.platform.keys["rows"] = key
        role = Assignment(Holder("service_account", "rows"), "consumer", Resource("workspace", "ads"))
        access.roles.assign([role], Author())
        made.platform.keys["slow"] = made.platform.registry.create_key("reader", "slow", rate_limit=1)
        assert wait_until(lambda: all(_is_known(made, name) for name in ("rows", "slow")), PATIENCE_S, every_s=0.02)
        yield made


def _is_known(served: Served, name: str) -> bool:
    headers = {"Authorization": f"Tecton-key {served.platform.keys[name][1]}"}
    return httpx2.get(f"{served.url}/api/v1/status", headers=headers, timeout=PATIENCE_S).status_code != 401


@pytest.fixture
def owner(served) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Tecton-key {served.platform.keys['admin'][1]}"}
    with httpx2.Client(base_url=served.url, headers=headers, timeout=PATIENCE_S) as client:
        yield client


class Operation(NamedTuple):
    """A call, what it is answered, and the calls before it; an expected text is the one member that must be there."""

    method: str
    path: str
    body: Any
    answer: Any
    before: tuple[tuple[str, str, Any], ...] = ()


def _scope(name: str) -> tuple[str, str, Any]:
    return "POST", f"{SECRETS}/{name}", None


def _secret(scope: str) -> tuple[str, str, Any]:
    return "PUT", f"{SECRETS}/{scope}/keys/k", {"value": "v"}


def _role(scope: str, role: str = "read_scope_role") -> dict[str, Any]:
    return {"resource_type": "RESOURCE_TYPE_SECRET_SCOPE", "resource_id": scope, "role": role, **READER}


def _assigned(scope: str) -> tuple[str, str, Any]:
    return "POST", f"{ROLES}/assign-roles", {"assignments": [_role(scope)]}


_OF_SCOPE = {"resource_type": "RESOURCE_TYPE_SECRET_SCOPE", "resource_id": "of"}
OPERATIONS = {
    "GetFeatures": Operation("POST", READ, {"params": U1}, "result"),
    "GetFeaturesBatch": Operation("POST", BATCH, {"params": batch_of("u1")}, "result"),
    "Metadata": Operation(
        "POST", METADATA, {"params": {"featureServiceName": SERVICE, "workspaceName": "prod"}}, "featureValues"
    ),
    "QueryFeatures": Operation("POST", QUERY, {"params": ADS}, "results"),
    "GetFeatureServiceState": Operation(
        "POST", STATE, {"featureServiceLocator": {"featureServiceName": SERVICE, "workspaceName": "prod"}}, {}
    ),
    "List scopes": Operation("GET", SECRETS, None, "scopes", (_scope("first"),)),
    "Create scope": Operation(*_scope("created"), {}),
    "Delete scope": Operation("DELETE", f"{SECRETS}/deleted", None, {}, (_scope("deleted"),)),
    "List secrets": Operation(
        "GET", f"{SECRETS}/listed/keys", None, {"keys": [{"name": "k"}]}, (_scope("listed"), _secret("listed"))
    ),
    "Get secret": Operation("GET", f"{SECRETS}/got/keys/k", None, {"value": "v"}, (_scope("got"), _secret("got"))),
    "Put secret": Operation(*_secret("put"), {}, (_scope("put"),)),
    "Delete secret": Operation(
        "DELETE", f"{SECRETS}/emptied/keys/k", None, {}, (_scope("emptied"), _secret("emptied"))
    ),
    "Assign roles": Operation(*_assigned("assigned"), {}, (_scope("assigned"),)),
    "Replace a principal's roles": Operation(
        "PUT",
        f"{ROLES}/assign-roles",
        {
            "resource_type": "RESOURCE_TYPE_SECRET_SCOPE",
            "resource_id": "replaced",
            "roles": ["write_scope_role"],
            **READER,
        },
        {},
        (_scope("replaced"),),
    ),
    "Unassign roles": Operation(
        "POST",
        f"{ROLES}/unassign-roles",
        {"assignments": [_role("unassigned")]},
        {},
        (_scope("unassigned"), _assigned("unassigned")),
    ),
    "Principals of a scope": Operation(
        "POST", f"{ROLES}/list-assigned-principals", _OF_SCOPE, "assignments", (_scope("of"), _assigned("of"))
    ),
    "Roles of a principal": Operation(
        "POST",
        f"{ROLES}/list-assigned-roles",
        {**READER, "resource_type": "RESOURCE_TYPE_SECRET_SCOPE"},
        "assignments",
        (_scope("mine"), _assigned("mine")),
    ),
    "Role definitions": Operation("POST", f"{ROLES}/get-roles", {}, "roles"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_answered_under_its_path(owner, name):
    operation = OPERATIONS[name]
    for method, path, body in operation.before:
        assert owner.request(method, path, json=body).is_success
    answer = owner.request(operation.method, operation.path, json=operation.body)
    assert answer.status_code == 200, answer.text
    if isinstance(operation.answer, str):
        assert answer.json()[operation.answer]
    else:
        assert answer.json() == operation.answer


NAMED = {
    "featureServiceName": {},
    "feature_service_name": {"featureServiceName": ..., "feature_service_name": SERVICE},
    "an int64 key as text": of_ad("1"),
    "an int64 key as a number": of_ad(1),
    "a null key": of_ad(None),
    "allowPartialResults": {"allowPartialResults": True},
    "isCallerBatch": {"isCallerBatch": True},
    "empty options": {"metadataOptions": {}, "requestOptions": {}},
    "readFromCache": {"requestOptions": {"readFromCache": True}},
    "writeToCache": {"requestOptions": {"writeToCache": True}},
    "ignoreExtraRequestContextFields": {
        "requestContextMap": {"amount": 100.0, "more": 1},
        "requestOptions": {"ignoreExtraRequestContextFields": True},
    },
    "latencyBudgetMs": {"requestOptions": {"latencyBudgetMs": 60_000}},
    "coerceNullCountsToZero": {"requestOptions": {"coerceNullCountsToZero": True}},
    "aggregationLeadingEdge": {"requestOptions": {"aggregationLeadingEdge": "AGGREGATION_MODE_LATEST_EVENT_TIME"}},
    "highWatermarkOverride": {"requestOptions": {"highWatermarkOverride": "2026-03-01T12:00:00Z"}},
}
_OF_PAIRS = {"an int64 key as text": ["2"], "an int64 key as a number": ["2"], "a null key": [None]}


@pytest.mark.parametrize("name", NAMED)
def test_each_member_of_a_request_is_taken(served, name):
    params = {member: value for member, value in {**U1, **NAMED[name]}.items() if value is not ...}
    if name in _OF_PAIRS:
        params["requestContextMap"] = {}
    answer = served.read(**params)
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"] == {"features": _OF_PAIRS.get(name, OF_U1)}


class Failure(NamedTuple):
    """A call by the published client that fails: with which exception, status, gRPC code and words."""

    raised: type[Exception]
    status: int
    code: int
    words: str
    changed: Mapping[str, Any] = MappingProxyType({})
    key: str = "reader"


def _of(**members: Any) -> dict[str, Any]:
    return members


FAILURES = {
    "400 missing join key": Failure(
        refused.BadRequestError, 400, 3, "Missing required join key: user_id", _of(join_key_map={})
    ),
    "400 unknown join key": Failure(
        refused.BadRequestError,
        400,
        3,
        "Unknown join key: shop, expected one of: [user_id]",
        _of(join_key_map={"user_id": "u1", "shop": "s"}),
    ),
    "400 missing context": Failure(
        refused.BadRequestError,
        400,
        3,
        "Expected key not found: [amount] in requestContextMap",
        _of(request_context_map={}),
    ),
    "400 wrong JSON type": Failure(
        refused.BadRequestError,
        400,
        3,
        "Unexpected JSON type for ad in joinKeyMap. Expected int64 or null.",
        _of(
            feature_service_name="pairs",
            workspace_name="ads",
            join_key_map={"user_id": "u1", "ad": "one"},
            request_context_map={},
        ),
    ),
    "401": Failure(refused.UnauthorizedError, 401, 16, "invalid 'Tecton-key' authorization header", key="nobody"),
    "403": Failure(refused.ForbiddenError, 403, 7, "Not Authorized", key="rows"),
    "404 service": Failure(
        refused.NotFoundError,
        404,
        5,
        "Unable to query FeatureService nothing for workspace prod",
        _of(feature_service_name="nothing"),
    ),
    "404 workspace": Failure(
        refused.NotFoundError,
        404,
        5,
        f"Unable to query FeatureService {SERVICE} for workspace test",
        _of(workspace_name="test"),
    ),
    "500": Failure(
        refused.TectonHttpException,
        500,
        13,
        "division by zero",
        _of(feature_service_name="broken", workspace_name="ads", request_context_map={}),
    ),
}
_CAMEL = {
    "feature_service_name": "featureServiceName",
    "workspace_name": "workspaceName",
    "join_key_map": "joinKeyMap",
    "request_context_map": "requestContextMap",
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_has_its_status_code_words_and_exception(served, name):
    failure = FAILURES[name]
    asked = {
        "feature_service_name": SERVICE,
        "workspace_name": "prod",
        "join_key_map": {"user_id": "u1"},
        "request_context_map": {"amount": 100.0},
        **failure.changed,
    }
    secret = "nobody" if failure.key == "nobody" else served.platform.keys[failure.key][1]
    body = {"params": {_CAMEL[member]: value for member, value in asked.items()}}
    headers = {"Authorization": f"Tecton-key {secret}"}
    answer = httpx2.post(served.url + READ, json=body, headers=headers, timeout=PATIENCE_S)
    told = answer.json()
    assert (answer.status_code, told["code"], told["error"]) == (failure.status, failure.code, told["message"])
    assert failure.words in told["message"]
    with pytest.raises(refused.TectonHttpException) as caught:
        served.client(secret).get_features(**asked)
    assert type(caught.value) is failure.raised
    if failure.status != 500:  # whose message the client loses
        assert failure.words in str(caught.value)


def test_429_is_a_resource_exhausted_error(served):
    client = served.client(served.platform.keys["slow"][1])
    with pytest.raises(refused.ResourceExhaustedError, match="may send 1 requests a second"):
        _again_and_again(client)


def _again_and_again(client: tecton_client.TectonClient) -> None:
    for _ in range(20):
        client.get_features(
            feature_service_name=SERVICE, join_key_map={"user_id": "u1"}, request_context_map={"amount": 1.0}
        )


def test_400_too_many_rows_of_a_batch(served):
    answer = served.read(BATCH, **batch_of(*["u1"] * 11))
    assert (answer.status_code, answer.json()["code"]) == (400, 3)
    assert answer.json()["message"] == "Batch size 11 exceeds maximum of 10."


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"featureServiceName": "nothing"}, "Unknown feature_service_name: nothing"),
        ({"featureServiceId": "0" * 32}, "Unknown feature_service_id: 00000000"),
        ({"featureViewName": "nothing"}, "FeatureView: nothing has no materialized data in the online store."),
    ],
    ids=["name", "id", "view"],
)
def test_404_of_metadata(served, params, words):
    answer = served.read(METADATA, workspaceName="prod", **params)
    assert (answer.status_code, answer.json()["code"]) == (404, 5)
    assert words in answer.json()["message"]


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 3), (401, 16), (403, 7), (404, 5), (409, 6), (429, 8), (499, 1), (500, 13), (501, 12), (503, 14), (504, 4)],
)
def test_each_status_has_its_grpc_code(status, code):
    told = tecton_body(status, {"error": "any", "detail": "what happened"})
    assert (told["code"], told["error"]) == (code, told["message"])
    assert "what happened" in told["message"]


def test_a_condition_that_must_hold_first_is_code_9_of_400():
    assert tecton_body(400, {"error": "failed_precondition", "detail": "not empty"})["code"] == 9


SLO = {
    "sloEligible": bool,
    "sloServerTimeSeconds": float,
    "serverTimeSeconds": float,
    "storeTimeSeconds": float,
    "storeMaxLatency": float,
    "storeResponseSizeBytes": int,
    "dynamodbResponseSizeBytes": int,
}


@pytest.mark.parametrize("member", SLO)
def test_each_member_of_slo_info_is_told_in_its_type(served, member):
    info = served.read(**U1, metadataOptions={"includeSloInfo": True}).json()["metadata"]["sloInfo"]
    assert type(info[member]) is SLO[member]
    found = served.client().get_features(
        feature_service_name=SERVICE,
        join_key_map={"user_id": "u1"},
        request_context_map={"amount": 1.0},
        metadata_options=tecton_client.MetadataOptions(include_slo_info=True),
    )
    assert found.slo_info is not None
