"""Training sets that were asked for: on SQLite and on PostgreSQL, their files in a folder and in a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurelib.clock import SECOND, Instant
from featurelib.errors import Conflict, NotFound
from featurelib.stores.registry import Registry
from featurelib.stores.spine_sources import open_spine
from featurelib.stores.training_places import TrainingPlace, uploaded_before
from featurelib.stores.training_requests import AskedBy, TrainingQuestion, TrainingRequests, new_training_id
from tests.contract.test_archive_s3 import amazon, bucket  # noqa: F401  # fixtures
from tests.support.clocks import MovedClock

START: Instant = 1_700_000_000 * SECOND


@pytest.fixture
def registry(database_url: str) -> Iterator[Registry]:
    made = Registry(database_url, MovedClock(START))
    made.migrate()
    yield made
    made.close()


def test_every_move_of_a_training_set_says_from_where_and_of_two_that_race_one_wins(registry: Registry) -> None:
    requests = TrainingRequests(registry.database, MovedClock(START))
    question = TrainingQuestion("Ri\x00der", "s3://spines/x", "rider", "at", "as_served")
    made = requests.request(new_training_id(), question, None, AskedBy("1f0c9a2b", "c-1"))
    found = requests.get(made.id)
    assert (found.featureset, found.rows, found.requested_by) == ("Ri\ufffdder", None, "1f0c9a2b")
    assert requests.submitted(made, "job")
    assert not requests.submitted(made, "another job")
    assert requests.advance(made.id, 3, 7, 1 << 40)
    assert requests.retried(made, "it died")
    assert requests.cancel(made.id).state == "cancelling"
    assert not requests.completed(made, 5)
    assert not requests.failed(made, "internal", "why")
    with pytest.raises(Conflict, match="is cancelling"):
        requests.forget(made.id)
    assert requests.cancelled(requests.get(made.id))
    over = requests.get(made.id)
    assert (over.state, over.submission_id, over.attempt) == ("cancelled", "job", 2)
    assert (over.rows, over.parts_done, over.parts) == (1 << 40, 3, 7)
    assert [each.id for each in requests.over_before(START + 1)] == [made.id]
    assert requests.open() == []
    requests.forget(made.id)
    for unknown in (made.id, "no id", "\x00"):
        with pytest.raises(NotFound):
            requests.get(unknown)


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_spine_is_uploaded_read_and_removed(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = str(tmp_path / "sets") if where == "folder" else f"{request.getfixturevalue('bucket')}/sets"
    assert uploaded_before(root, 1 << 60) == []
    place = TrainingPlace(root, new_training_id())
    with pytest.raises(Conflict, match="is gone"):
        place.spine()
    pq.write_table(pa.table({"rider": [1, 2]}), tmp_path / "given.parquet")
    upload, whole = place.receiving("parquet"), (tmp_path / "given.parquet").read_bytes()
    upload.write(whole[:100])
    upload.write(whole[100:])
    upload.close()
    assert open_spine(place.spine()).count_rows() == 2
    assert place.manifest() is None
    assert place.output.startswith(root)
    assert len(uploaded_before(root, 1 << 60)) == 1
    assert uploaded_before(root, 0) == []
    place.remove()
    place.remove()
    assert uploaded_before(root, 1 << 60) == []
