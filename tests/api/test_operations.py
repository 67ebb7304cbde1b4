"""Health, metrics, and the OpenAPI document."""

from __future__ import annotations

from featurelib.settings import OnlineSettings
from tests.support.redis_server import RedisServer


async def test_health_says_what_answers(client):
    answer = await client.get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    assert answer.json()["registry"] == "ok"
    assert answer.json()["online_store"] == "ok"


async def test_while_the_online_store_is_away_reads_and_health_are_503_and_then_well_again(
    settings, clock, redis_server: RedisServer
):
    from tests.api.conftest import Platform

    online = OnlineSettings(redis_url=redis_server.url)
    platform = Platform(settings.model_copy(update={"online": online}), clock)
    async with platform.application.running(), platform.client() as client:
        await platform.commit_rides(client)
        redis_server.stop()
        health = await client.get("/health")
        read = await client.get("/features?featureset=Rider&entity_id=7")
        for answer in (health, read):
            assert (answer.status_code, answer.json()["error"]) == (503, "store_unavailable")
            assert answer.headers["retry-after"] == "1"
            assert redis_server.password not in answer.text
        redis_server.start()
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/features?featureset=Rider&entity_id=7")).status_code == 200
    platform.log.close()
    platform.registry.close()


async def test_metrics_count_answers_by_route_and_never_by_id(rides):
    await rides.get("/features?featureset=Rider&entity_id=7")
    await rides.get("/query-runs/some-id")
    await rides.get("/no/such/route")
    text = (await rides.get("/metrics")).text
    assert 'thyme_http_requests_total{method="GET",route="/features",status="200"} 1.0' in text
    assert 'route="/query-runs/{run_id}",status="404"' in text
    assert 'route="other",status="404"' in text
    assert "some-id" not in text
    assert "thyme_http_request_seconds_bucket" in text


async def test_the_document_holds_every_route_with_its_error_body(client):
    document = (await client.get("/openapi.json")).json()
    paths = {(path, method) for path, operations in document["paths"].items() for method in operations}
    assert {
        ("/features", "get"),
        ("/features", "post"),
        ("/features/batch", "post"),
        ("/api/v1/commit", "post"),
        ("/api/v1/log", "post"),
        ("/api/v1/status", "get"),
        ("/query-runs", "get"),
        ("/query-runs/{run_id}/replay", "post"),
        ("/health", "get"),
        ("/metrics", "get"),
    } <= paths
    get = document["paths"]["/features"]["get"]
    assert get["security"] == [{"bearer": []}]
    assert get["responses"]["404"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/ErrorBody"
    }
    assert all("422" not in operation["responses"] for ops in document["paths"].values() for operation in ops.values())
    assert dangling(document) == set()


def dangling(document: dict) -> set[str]:
    """References that name no schema of the document."""

    def references(tree: object) -> set[str]:
        if isinstance(tree, dict):
            own = {tree["$ref"]} if isinstance(tree.get("$ref"), str) else set()
            return own.union(*map(references, tree.values()))
        return set().union(*map(references, tree)) if isinstance(tree, list) else set()

    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    return references(document) - known


async def test_reads_are_timed_by_featureset_and_a_name_that_is_not_committed_makes_no_series(rides, platform):
    await rides.get("/features", params={"featureset": "Rider", "entity_id": 7})
    await rides.get("/features", params={"featureset": "Rider", "entity_id": "no number"})
    await rides.get("/features", params={"featureset": "Nobodys", "entity_id": 7})
    await rides.get("/features", params={"entity_type": "Nobodys", "entity_id": 7})
    told = (await rides.get("/metrics")).text
    assert 'thyme_read_seconds_count{featureset="Rider",kind="online"} 1.0' in told
    assert 'thyme_read_errors_total{code="invalid_request",featureset="Rider"} 1.0' in told
    assert 'thyme_read_errors_total{code="not_found",featureset="other"} 1.0' in told
    assert 'thyme_read_seconds_count{featureset="other",kind="lookup"} 1.0' in told
    assert "Nobodys" not in told
