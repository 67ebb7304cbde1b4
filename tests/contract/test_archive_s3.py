"""The archive and spines in a bucket of an object store: a real HTTP server that speaks S3."""

from __future__ import annotations

import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from cluster.processes import free_port, wait_until
from featurelib.errors import CorruptState, InvalidRequest
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.spine_files import Order, Outcome, SpineFolder
from featurelib.stores.spine_sources import open_spine
from tests.contract.test_archive import TRIP, offsets, records
from tests.support.amazon import REGION, Amazon
from tests.support.patience import PATIENCE_S


@pytest.fixture(scope="module")
def amazon() -> Iterator[Amazon]:
    """A server in a process of its own: Delta's calls keep this one's interpreter while they wait for an answer."""
    port = free_port([])
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert wait_until(lambda: listens(port), PATIENCE_S)
        yield Amazon(f"http://127.0.0.1:{port}")
    finally:
        server.kill()
        server.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def bucket(amazon, monkeypatch) -> str:
    """URL of an empty bucket. Where the store is stands in the environment, with the credentials."""
    for name, value in {
        "AWS_ENDPOINT_URL": amazon.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"offline-{uuid.uuid4().hex[:8]}"
    amazon.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    return f"s3://{name}"


def test_the_archive_lives_in_a_bucket_when_the_setting_names_one(bucket, tmp_path):
    settings = Settings(data_dir=tmp_path, archive={"url": f"{bucket}/archive"})
    archive = Archive(settings.archive_url)
    for first in range(0, 32, 8):
        archive.append(TRIP, records(first, 8))
    assert archive.append(TRIP, records(28, 8)) == 4
    with pytest.raises(CorruptState):
        archive.append(TRIP, records(80, 1))
    before = DeltaTable(archive.location(TRIP)).version()
    done = archive.compact(TRIP)
    assert done.after < done.before
    assert offsets(archive.read(TRIP)) == list(range(36))
    assert archive.archived_offset(TRIP, 0) == 36
    assert len(DeltaTable(archive.location(TRIP), version=before - 1).to_pyarrow_dataset().to_table()) == 32
    assert archive.vacuum(TRIP, retention_hours=0) > 0
    assert archive.erase(TRIP, {"rider3": 100}) == 4
    archive.purge(TRIP)
    assert len(archive.read(TRIP)) == 32
    assert not list(tmp_path.iterdir())


def test_a_spine_and_the_folder_of_a_read_may_lie_in_a_bucket(bucket, amazon, tmp_path):
    table = pa.table({"rider": ["a", "b", None], "seen": [1, 2, 3]})
    pq.write_table(table, tmp_path / "spine.parquet")
    write_deltalake(f"{bucket}/table", table)
    amazon.client("s3").upload_file(str(tmp_path / "spine.parquet"), bucket.removeprefix("s3://"), "in/spine.parquet")
    for url in (f"{bucket}/in/spine.parquet", f"{bucket}/in", f"{bucket}/table"):
        spine = open_spine(url)
        assert pa.Table.from_batches(spine.batches(2)).to_pylist() == table.to_pylist()
        assert spine.count_rows() == 3
        assert spine.identity.url == url
    with pytest.raises(InvalidRequest, match=r"there is nothing at s3://offline-.*/absent"):
        open_spine(f"{bucket}/absent")
    folder = SpineFolder.create(f"{bucket}/reads", 5)
    folder.put(Order(featureset="F", registry_version=1, knowledge="latest", cut={}, partitions=1), [], [])
    folder.end(Outcome(rows=2))
    assert (folder.order().featureset, folder.outcome()) == ("F", Outcome(rows=2))
    folder.remove()
