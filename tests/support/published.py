"""What users of another platform run against this one: its published client, every call of it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import httpx2
import tecton_client
from tecton_client import exceptions

SERVICE = "fraud_detection_feature_service"
"""Of ``examples/tecton/features.py``, in workspace ``prod``."""
FEATURES = 11
_ASKED: dict[str, Any] = {"feature_service_name": SERVICE, "join_key_map": {"user_id": "u1"}}
_CONTEXT = {"amount": 100.0}
_DOCUMENTED = {"user_id": "user_123", "amount": 150.0, "merchant_category": "electronics"}


def read_by_tecton_client(url: str, key: str) -> list[Any]:
    """Make every call of the client, in both its forms; the features of ``u1``, once by each call that reads them."""
    with httpx.Client() as http:
        client = tecton_client.TectonClient(url=url, api_key=key, default_workspace_name="prod", client=http)
        plain = client.get_features(**_ASKED, request_context_map=_CONTEXT)
        whole = client.get_features(
            **_ASKED,
            request_context_map=_CONTEXT,
            metadata_options=tecton_client.MetadataOptions.all(),
            request_options=tecton_client.RequestOptions(True, True, True, 60_000, True),
            allow_partial_results=True,
        )
        metadata = client.get_feature_service_metadata(feature_service_name=SERVICE)
    assert whole.slo_info is not None
    assert set(whole.metadata["features"][0]) >= {"name", "dataType", "status", "effectiveTime", "description", "tags"}
    assert len(metadata.feature_values) == len(plain.get_features_dict()) == FEATURES
    return [plain.result.features, whole.result.features, asyncio.run(_read(url, key))]


async def _read(url: str, key: str) -> Any:
    async with httpx.AsyncClient() as http:
        client = tecton_client.AsyncTectonClient(url, key, "prod", http)
        metadata = await client.get_feature_service_metadata(feature_service_name=SERVICE)
        assert len(metadata.feature_values) == FEATURES
        answer = await client.get_features(**_ASKED, request_context_map=_CONTEXT)
        return answer.result.features


def refused_by_tecton_client(url: str, key: str, **changed: Any) -> str:
    """The name of the exception by which the client tells of a read that fails."""
    with httpx.Client() as http:
        client = tecton_client.TectonClient(url=url, api_key=key, default_workspace_name="prod", client=http)
        try:
            client.get_features(**{**_ASKED, "request_context_map": _CONTEXT, **changed})
        except exceptions.TectonHttpException as error:
            return type(error).__name__
    return ""


def ingest_as_snowflakes_client(url: str, key: str, timestamp: str) -> dict[str, Any]:
    """Send the documented record to ``transactions_stream``; what became of it there."""
    headers = {"Authorization": f'Snowflake Token="{key}"', "Accept": "application/json"}
    record = {**_DOCUMENTED, "timestamp": timestamp}
    body = {"records": {"transactions_stream": [record]}}
    answer = httpx2.post(f"{url}/api/v1/ingest", json=body, headers=headers, timeout=120.0)
    told: dict[str, Any] = answer.json()["sources"]["transactions_stream"]
    return told


def query_as_snowflakes_client(url: str, key: str) -> dict[str, Any]:
    """Read the documented view of the documented user, as the client asks: with names and types."""
    headers = {"Authorization": f'Snowflake Token="{key}"', "Accept": "application/json"}
    asked = {
        "name": "user_transaction_features",
        "version": "v1",
        "object_type": "feature_view",
        "request_rows": [{"entity": {"user_id": _DOCUMENTED["user_id"]}}],
        "metadata_options": {"include_names": True, "include_data_types": True},
    }
    told = httpx2.post(f"{url}/api/v1/query", json=asked, headers=headers, timeout=120.0).json()
    names = [each["name"] for each in told["metadata"]["features"]]
    return dict(zip(names, told["results"][0]["features"], strict=True))
