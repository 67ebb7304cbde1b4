"""Feast's Python feature server, in an environment of its own, over the same online store's server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from cluster.processes import free_port, wait_until

ENVIRONMENT = Path(__file__).resolve().parents[2] / "build" / "feast"
VERSION = "0.67.0"
_START_S = 60.0
_SETTINGS = """
project: bench
provider: local
registry: registry.db
online_store:
  type: redis
  connection_string: "{host}:{port},password={password}"
offline_store:
  type: dask
entity_key_serialization_version: 3
"""
# 5 views of 10 features each, floats, written online for every key.
_DEFINE = """
import sys
from datetime import datetime, timedelta, timezone
import pandas as pd
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource
from feast.types import Float64
from feast.value_type import ValueType

views, features, keys = 5, 10, int(sys.argv[1])
now = datetime.now(timezone.utc)
user = Entity(name="user", join_keys=["user"], value_type=ValueType.STRING)
made = []
for view in range(views):
    names = [f"feature_{view * features + number:02d}" for number in range(features)]
    rows = {"user": [f"u{key}" for key in range(keys)], "event_timestamp": [now] * keys}
    rows |= {name: [hash((name, key)) % 1_000_000 / 100 for key in range(keys)] for name in names}
    frame = pd.DataFrame(rows)
    frame.to_parquet(f"view{view}.parquet")
    source = FileSource(name=f"source{view}", path=f"view{view}.parquet", timestamp_field="event_timestamp")
    schema = [Field(name=name, dtype=Float64) for name in names]
    made.append((FeatureView(name=f"view{view}", entities=[user], ttl=timedelta(days=7), schema=schema, source=source),
                 frame))
store = FeatureStore(".")
store.apply([user, *(view for view, _ in made), FeatureService(name="all", features=[view for view, _ in made])])
for view, frame in made:
    store.write_to_online_store(view.name, frame)
"""


def install() -> None:
    """Make the environment, once."""
    marker = ENVIRONMENT / f"feast-{VERSION}"
    if marker.exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    subprocess.run([_binary("pip"), "install", "--quiet", f"feast[redis]=={VERSION}"], check=True)
    marker.touch()


@contextmanager
def feast_server(folder: Path, redis_url: str, keys: int, workers: int) -> Iterator[int]:
    """A feature server with this many worker processes, none of which is recycled; yields its port."""
    folder.mkdir()
    store = urlsplit(redis_url)
    (folder / "feature_store.yaml").write_text(
        _SETTINGS.format(host=store.hostname, port=store.port, password=store.password)
    )
    (folder / "define.py").write_text(_DEFINE)
    subprocess.run([_binary("python"), "define.py", str(keys)], cwd=folder, check=True)
    port = free_port([])
    options = ["--workers", str(workers), "--max-requests", "0", "--max-requests-jitter", "0", "--no-access-log"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [_binary("feast"), "serve", "--port", str(port), *options],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,  # as a replica is
        )
    try:
        if not wait_until(lambda: _answers(port), _START_S, every_s=0.2):
            raise TimeoutError(f"Feast does not answer: {(folder / 'log').read_text()[-1_000:]}")
        yield port
    finally:
        server.terminate()
        server.wait()


def body(keys: Sequence[str]) -> bytes:
    """A request for all 50 features of these keys."""
    quoted = ", ".join(f'"{key}"' for key in keys)
    return f'{{"feature_service": "all", "entities": {{"user": [{quoted}]}}}}'.encode()


PATH = "/get-online-features"


def _answers(port: int) -> bool:
    try:
        answer = httpx2.post(
            f"http://127.0.0.1:{port}{PATH}",
            content=body(["u0"]),
            headers={"Content-Type": "application/json"},
            trust_env=False,
        )
    except httpx2.HTTPError:
        return False
    return answer.status_code == httpx2.codes.OK


def _binary(name: str) -> str:
    return str(ENVIRONMENT / "bin" / name)
