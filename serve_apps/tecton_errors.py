"""How failures are told to clients of Tecton's API: message twice, and a gRPC code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

PREFIXES = ("/api/v1/feature-service/", "/api/v1/secrets-service/", "/api/v1/authorization-service/")
"""Paths whose failures have this body, those of the framework included."""

_INVALID_ARGUMENT, _INTERNAL = 3, 13
_BY_STATUS = {
    400: _INVALID_ARGUMENT,
    401: 16,
    403: 7,
    404: 5,
    405: 12,
    409: 6,
    410: 5,
    413: 8,
    429: 8,
    499: 1,
    501: 12,
    503: 14,
    504: 4,
}
_BY_CODE = {"failed_precondition": 9}
# Words that clients look for, in front of what we have to say.
_WORDS = {401: "invalid 'Tecton-key' authorization header", 403: "Not Authorized"}


class TectonErrorBody(BaseModel):
    """The body of every failure on these paths."""

    error: str = Field(description="What is wrong and where.")
    message: str = Field(description="The same.")
    code: int = Field(description="The gRPC code.")


TECTON_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": TectonErrorBody, "description": "The request is wrong; 9: something else must be done first."},
    401: {"model": TectonErrorBody, "description": "The key is missing, unknown, expired or revoked."},
    403: {"model": TectonErrorBody, "description": "The key's principal does not hold the role this needs."},
    404: {"model": TectonErrorBody, "description": "Nothing of that name exists."},
    409: {"model": TectonErrorBody, "description": "There is one of that name already."},
    413: {"model": TectonErrorBody, "description": "The body is too large."},
    429: {"model": TectonErrorBody, "description": "The key has sent more requests than it may."},
    500: {"model": TectonErrorBody, "description": "The service failed."},
    503: {"model": TectonErrorBody, "description": "A store does not answer; retry."},
    504: {"model": TectonErrorBody, "description": "It took too long."},
}
"""For routers: how these paths fail."""


def tecton_body(status: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a failure.

    Args:
        status: of the answer.
        told: the body it has on paths of our own.
    """
    message = f"{_WORDS[status]}: {told['detail']}" if status in _WORDS else told["detail"]
    code = _BY_CODE.get(told["error"]) or _BY_STATUS.get(status, _INTERNAL)
    return {"error": message, "message": message, "code": code}
