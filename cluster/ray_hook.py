"""Loaded by `ray start` before it starts a node (``RAY_START_HOOK``)."""

from __future__ import annotations

from typing import Any


def without_client_server(ray_params: Any, head: bool) -> None:  # noqa: ARG001  # Ray's signature
    """Leave out the Ray Client server: no flag does, nothing here uses it, it costs 60 MB and fixed port 10001."""
    ray_params.ray_client_server_port = None
