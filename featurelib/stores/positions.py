"""What a query run records of where its answer was read, and the way back.

Keys that extractors looked up are not recorded; marks stand for them.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from featurelib.stores.audit import QueryRun
from featurelib.stores.digests import Digests
from featurelib.stores.questions import Applied, Seen

MOST_ROWS = 100_000
"""Rows whose positions one run records; of a larger answer none are, and it cannot be reproduced."""

# The positions of one row take some 20 bytes; 5 views of 100 entities take 9 kB as text and 2 kB deflated.
_DEFLATE_ABOVE = 2_048
# Not worth a look.
_FEW_ROWS = 16
_as_json = json.JSONEncoder(separators=(",", ":")).encode


class SeenBefore(NamedTuple):
    """What a recorded run saw; ``marks``: where each row that an extractor looked up stops."""

    seen: Seen
    marks: Mapping[str, Applied]


def positions_of(run_id: str, seen: Seen, digests: Digests) -> dict[str, Any]:
    """The ``positions`` of a query run."""
    marks = {digests.mark(run_id, dataset, key, at): applied for dataset, key, at, applied in seen.looked_up}
    return {
        "clock": seen.clock,
        "pipelines": seen.pipelines,
        "applied": _packed(seen.applied),
        "looked_up": _packed(marks),
        "ends": seen.ends,
    }


def seen_before(run: QueryRun) -> SeenBefore | None:
    """What a run saw; ``None`` where it was not recorded."""
    found = run.positions
    if not found or run.registry_version is None:
        return None
    applied = [_offsets(each) for each in _unpacked(found["applied"])]
    marks = {mark: _offsets(each) for mark, each in _unpacked(found["looked_up"]).items()}
    ends = {name: tuple(offsets) for name, offsets in found["ends"].items()}
    names = tuple(found["pipelines"])
    return SeenBefore(Seen(run.registry_version, run.read_at, found["clock"], names, applied, [], ends), marks)


def _offsets(given: list[int] | None) -> Applied:
    return None if given is None else tuple(given)


def _packed(value: Any) -> Any:
    if len(value) <= _FEW_ROWS:
        return value
    text = _as_json(value)
    return value if len(text) <= _DEFLATE_ABOVE else base64.b64encode(zlib.compress(text.encode())).decode()


def _unpacked(stored: Any) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(stored))) if isinstance(stored, str) else stored
