"""The OpenAPI document is true: whatever is sent, every answer is one it describes, and none is a server error."""

import os
import shutil
from collections.abc import Iterator

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cluster.sockets import bind_listener
from featurelib.compile import compile_module
from featurelib.settings import Settings
from serve_apps.api import build_api
from serve_apps.listener import Listener
from serve_apps.services import open_services
from serve_apps.web import OPEN_PATHS, Application
from tests.api.conftest import NOON, RIDES, Platform
from tests.support.clocks import MovedClock
from tests.support.patience import PATIENCE_S

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
# Its answer has no end.
ENDLESS = {"GET /api/v1/events/stream"}
# Each of some 140 cases; more find more: OPENAPI_EXAMPLES=100 takes half an hour.
EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "3"))


@pytest.fixture(scope="module")
def served(tmp_path_factory, module_redis, migrated) -> Iterator[tuple[str, str]]:
    """URL and admin key of both services, over real stores, with the rides committed."""
    folder = tmp_path_factory.mktemp("openapi")
    shutil.copy(migrated, folder / "registry.db")
    chosen = Settings(
        data_dir=folder,
        online={"redis_url": module_redis.url},
        registry={"url": f"sqlite:///{folder}/registry.db"},
        serving={"plan_poll_ms": 20, "max_body_bytes": 65_536},
    )
    clock = MovedClock(NOON)
    platform = Platform(chosen, clock)
    listener = Listener(Application(lambda: open_services(chosen, clock)), bind_listener("127.0.0.1", 0))
    listener.start()
    url, key = f"http://127.0.0.1:{listener.port}", platform.keys["admin"][1]
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_S) as client:
        commit = compile_module("tests/api/rides.py")
        assert client.post("/api/v1/commit", content=commit.model_dump_json()).is_success
        platform.create_logs()
        assert client.post("/api/v1/log", json={"dataset": "Ride", "events": RIDES}).is_success
    yield url, key
    listener.stop()
    platform.log.close()
    platform.registry.close()


DOCUMENT = build_api().openapi()
OPERATIONS = {
    operation.label: operation
    for operation in (each.ok() for each in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
    if operation.label not in ENDLESS
}


def is_asked_something(label: str) -> bool:
    """Whether the operation takes anything that could be wrong."""
    method, path = label.split(" ")
    described = DOCUMENT["paths"][path][method.lower()]
    return bool(described.get("parameters") or described.get("requestBody"))


CASES = [
    (label, mode)
    for label in sorted(OPERATIONS)
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or is_asked_something(label)
]


@pytest.mark.parametrize(("label", "mode"), CASES, ids=[f"{label} {mode.value}" for label, mode in CASES])
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_every_answer_is_one_that_is_described(data, served, label, mode):
    url, key = served
    case = data.draw(OPERATIONS[label].as_strategy(generation_mode=mode))
    answer = case.call(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_S)
    case.validate_response(answer, checks=CHECKS)


def test_every_operation_says_what_it_does_and_how_it_fails():
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary") or operation.get("description"), (method, path)
            assert any(status.startswith("2") for status in operation["responses"]), (method, path)
            if path not in OPEN_PATHS:
                assert "401" in operation["responses"], (method, path)
