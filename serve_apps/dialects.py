"""The error body on paths that speak another platform's API: a client of it finds what it expects on every failure.

The boundary writes the one error body first; here it is put into the words of the path. Only failures come by here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from serve_apps.messages import Answer, encode
from serve_apps.snowflake_wire import PREFIXES as SNOWFLAKE
from serve_apps.snowflake_wire import snowflake_body
from serve_apps.tecton_errors import PREFIXES as TECTON
from serve_apps.tecton_errors import tecton_body

Dialect = Callable[[int, Mapping[str, Any]], Mapping[str, Any]]
"""From the status and the one error body to the body that clients of the path expect."""

_DIALECTS: tuple[tuple[tuple[str, ...], Dialect], ...] = ((TECTON, tecton_body), (SNOWFLAKE, snowflake_body))


def told(path: str, refusal: Answer) -> Answer:
    """A refusal as clients of the path expect it; on paths of our own, as it is."""
    for prefixes, dialect in _DIALECTS:
        if path.startswith(prefixes):
            return refusal._replace(body=encode(dialect(refusal.status, json.loads(refusal.body))))
    return refusal
