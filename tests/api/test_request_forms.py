"""What a request may look like that is not read by the hot routes: names of parameters, and of the body's type."""

from __future__ import annotations

import pytest

MISSPELT = [
    ("GET", "/query-runs?featurset=Rider", "featurset"),
    ("GET", "/query-runs?limit=1&entity=7", "entity"),
    ("GET", "/api/v1/search?kind=dataset", "kind"),
    ("GET", "/api/v1/events?type=commit", "type"),
    ("GET", "/api/v1/events/stream?since=now", "since"),
    ("GET", "/api/v1/datasets/Ride?v=1", "v"),
    ("GET", "/api/v1/featuresets/Rider/diff?from=1&until=2", "until"),
    ("GET", "/api/v1/lineage?nodes=dataset:Ride", "nodes"),
    ("GET", "/api/v1/backfills?pipelines=x", "pipelines"),
    ("POST", "/api/v1/commit?dryrun=true", "dryrun"),
    ("POST", "/api/v1/plan?key=5", "key"),
]
TYPES = ["application/x-www-form-urlencoded", "text/plain; charset=utf-8", "application/xml", "application/json", None]


@pytest.mark.parametrize(("method", "path", "named"), MISSPELT, ids=[path for _, path, _ in MISSPELT])
async def test_a_parameter_that_a_route_does_not_take_is_named(rides, method, path, named):
    answer = await rides.request(method, path, content=b"{}" if method == "POST" else None)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert answer.json()["detail"].startswith(f"{named}: no such parameter; ")


async def test_the_refusal_says_what_is_taken(rides):
    answer = await rides.get("/api/v1/tags?limit=5")
    assert answer.json()["detail"] == "limit: no such parameter; this route takes none"
    answer = await rides.get("/api/v1/featuresets/Rider/diff?with=1")
    assert answer.json()["detail"] == "with: no such parameter; accepted: from, to"


async def test_a_misspelt_dry_run_commits_nothing(platform, client):
    before = platform.registry.version()
    await platform.commit_rides(client)
    assert platform.registry.version() > before
    before = platform.registry.version()
    answer = await client.post("/api/v1/commit?dry-run=true", json={"datasets": [], "featuresets": []})
    assert answer.status_code == 400
    assert platform.registry.version() == before


async def test_a_parameter_given_twice_is_refused(rides):
    answer = await rides.get("/query-runs?limit=1&limit=2")
    assert (answer.status_code, answer.json()["detail"]) == (400, "limit: given more than once")


@pytest.mark.parametrize("path", ["/health", "/metrics"])
async def test_a_monitor_may_ask_with_parameters_of_its_own(rides, path):
    assert (await rides.get(f"{path}?t=1")).status_code == 200


@pytest.mark.parametrize("kind", TYPES, ids=[str(kind) for kind in TYPES])
async def test_a_body_is_read_as_json_whatever_its_type_is_called(rides, kind):
    headers = {} if kind is None else {"content-type": kind}
    body = b'{"reason": "old", "replacement": "RiderReplayed"}'
    answer = await rides.post("/api/v1/featuresets/Rider/deprecate", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["deprecation_reason"] == "old"
    answer = await rides.patch("/api/v1/metadata/dataset/Ride", content=b'{"owner": "us"}', headers=headers)
    assert answer.json()["owner"] == "us"


async def test_what_is_no_json_is_refused_as_such(rides):
    answer = await rides.post(
        "/api/v1/featuresets/Rider/deprecate", content=b"<a/>", headers={"content-type": "application/xml"}
    )
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert answer.json()["detail"].startswith("body: JSON decode error")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/v1/status", "GET, HEAD"),
        ("PUT", "/api/v1/keys", "GET, HEAD, POST"),
        ("OPTIONS", "/api/v1/featuresets/Rider/deprecate", "DELETE, POST"),
        ("PATCH", "/query-runs/some-id", "GET, HEAD"),
    ],
)
async def test_a_method_that_a_path_is_not_served_with_is_told_which_it_is(client, method, path, allowed):
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["detail"] == f"{method} is not one of {allowed}"
