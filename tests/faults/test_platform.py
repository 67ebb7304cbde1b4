"""The whole platform under kill -9: every count stays exact, and reads go on.

One platform serves the module: rides are ingested from files while its processes die.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from cluster import local
from cluster.launcher import Job, Launcher
from cluster.processes import Owned, wait_until
from cluster.state import read_state
from featurelib.clock import SystemClock, format_instant
from featurelib.errors import NotFound, ThymeError
from featurelib.settings import Settings, load_settings
from featurelib.stores.online import OnlineStore, StateName
from jobs.monitor import MonitorTask
from tests.support.accounts import ACCOUNTS_MODULE, SIZES, account_changes, in_process, json_lines
from tests.support.platforms import Platform
from tests.support.published import (
    ingest_as_snowflakes_client,
    query_as_snowflakes_client,
    read_by_tecton_client,
    refused_by_tecton_client,
)
from tests.support.towns import (
    CATCH_UP_ROWS,
    CITIES,
    DEADLINE_S,
    FLEET_MODULE,
    RIDERS,
    START_S,
    Town,
    running_town,
)

# Waits end as soon as what they wait for is there: their bounds are for what never comes, however full the machine.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
OFFLINE_ROWS = 120
"""Rows of an offline read that a replica answers itself; more go to a job."""


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with running_town(tmp_path_factory.mktemp("home"), THYME_SERVING__OFFLINE_ROWS=str(OFFLINE_ROWS)) as made:
        yield made


def while_ingesting(town: Town, fault: Callable[[], None]) -> None:
    """Let a fault happen after some of the new rides were folded and before all were."""
    before = town.rows
    feeding = threading.Thread(target=town.drive, args=(30, 4_000))
    feeding.start()
    assert wait_until(lambda: town.folded() > before, DEADLINE_S, every_s=0.1)
    fault()
    feeding.join()


def test_workers_killed_in_the_middle_of_batches_count_every_ride_once(town: Town) -> None:
    def kill_workers() -> None:
        assert town.platform.kill("ray::PipelineWorker")

    while_ingesting(town, kill_workers)
    town.settles()
    assert town.client.events(event_type="job_failed")


def test_a_source_reader_killed_between_appends_reads_on_without_doubles(town: Town) -> None:
    def kill_readers() -> None:
        assert town.platform.kill("ray::SourceReader")

    while_ingesting(town, kill_readers)
    town.settles()


def test_the_online_store_stopped_for_ten_seconds_resumes_with_exact_counts(town: Town) -> None:
    def stop_store() -> None:
        (store,) = [p for p in town.platform.processes("", "online") if p.ppid()][:1]
        store.send_signal(signal.SIGSTOP)
        threading.Event().wait(10)  # the fault itself: ten seconds of silence
        store.send_signal(signal.SIGCONT)

    while_ingesting(town, stop_store)
    town.settles()


def test_the_online_store_killed_comes_back_with_exact_counts(town: Town) -> None:
    def kill_store() -> None:
        town.platform.kill("", "online")

    while_ingesting(town, kill_store)
    town.settles()


def test_reads_are_answered_while_the_ray_head_is_dead_and_counting_goes_on(town: Town) -> None:
    town.settles()
    before = head_of(town)
    assert town.platform.kill("gcs_server", "head")
    town.platform.kill("raylet/raylet", "head")  # it may end with the one before
    town.drive(2, 500)
    reads = []

    def is_back() -> bool:
        reads.append(town.served())  # an error here fails the test: every read during the loss must be answered
        return head_of(town) != before and local.status(town.platform.settings).ready

    assert wait_until(is_back, DEADLINE_S, every_s=0.2)
    assert len(reads) > 10
    town.settles()


def head_of(town: Town) -> Owned | None:
    """The process of the Ray head, as the watcher knows it."""
    state = read_state(town.platform.layout.state_file)
    assert state is not None
    return state.parts["head"].process


def test_a_backfill_beside_live_ingestion_hands_over_exactly(town: Town) -> None:
    feeding = threading.Thread(target=town.drive, args=(10, 2_000))
    feeding.start()
    environment = {**town.platform.environment, **_ray_environment(town.platform)}
    done = subprocess.run(
        [
            town.platform.binary("ray"),
            *("job", "submit", "--working-dir", str(_empty(town.platform.home / "job")), "--"),
            *("python", "-m", "jobs.backfill", "--pipeline", "by_rider"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    feeding.join()
    town.settles()
    (event, *_) = town.client.events(event_type="backfill_completed")
    assert event["subject"] == "by_rider@1"


def test_a_backfill_on_request_is_served_and_a_cancelled_one_never_is(town: Town) -> None:
    town.settles()
    cancelled = town.client.start_backfill("by_city")
    town.client.cancel_backfill(cancelled["id"])
    shown = town.platform.thyme("backfill", "start", "by_rider", "--follow")
    assert "complete" in shown
    assert wait_until(lambda: town.client.backfill(cancelled["id"])["state"] == "cancelled", DEADLINE_S, every_s=0.3)
    done = town.client.backfills(pipeline="by_rider")[0]
    assert (done["state"], done["rows"], done["rows_expected"]) == ("complete", town.rows, town.rows)
    town.drive(1, 500)
    town.settles()
    assert not town.client.events(event_type="backfill_completed", subject="by_city@1")
    # What was served before has been kept up to date meanwhile, and goes on being.
    town.client.roll_back_backfill(done["id"])
    assert wait_until(lambda: town.client.backfill(done["id"])["state"] == "rolled_back", DEADLINE_S, every_s=0.1)
    town.settles()
    town.drive(1, 500)
    town.settles()


def test_a_requested_backfill_whose_driver_is_killed_is_gone_on_with_and_switches_once(town: Town) -> None:
    town.settles()
    before = len(town.client.events(event_type="backfill_completed", subject="by_rider@1"))
    asked = town.client.start_backfill("by_rider")

    def builds() -> bool:
        return bool(town.client.backfill(asked["id"])["generation"]) and bool(town.platform.kill(asked["id"]))

    assert wait_until(builds, DEADLINE_S, every_s=0.02)
    town.drive(1, 500)

    def is_complete() -> bool:
        shown = town.client.backfill(asked["id"])
        assert shown["state"] not in ("failed", "cancelled"), shown
        return bool(shown["state"] == "complete")

    assert wait_until(is_complete, DEADLINE_S, every_s=0.2)
    town.settles()
    assert len(town.client.events(event_type="backfill_completed", subject="by_rider@1")) == before + 1
    assert town.client.backfill(asked["id"])["attempt"] == 2


def test_a_new_pipeline_far_behind_catches_up_as_a_bounded_job_and_goes_on_live(town: Town) -> None:
    if town.rows < CATCH_UP_ROWS:
        town.drive(1, CATCH_UP_ROWS)
    town.settles()
    (town.platform.home / "fleet.py").write_text(FLEET_MODULE)
    town.platform.thyme("commit", str(town.platform.home / "fleet.py"))
    assert wait_until(lambda: _fleet(town) == town.expected()[1], DEADLINE_S, every_s=0.3), _fleet(town)
    (event, *_) = town.client.events(event_type="backfill_completed", subject="by_fleet@1")
    assert "generation 2 is served" in event["message"]
    town.drive(1, 500)
    assert wait_until(lambda: _fleet(town) == town.expected()[1], DEADLINE_S, every_s=0.3), _fleet(town)


def test_a_chain_over_change_data_survives_its_workers_and_reads_the_same_online_and_past(town: Town) -> None:
    folder = town.platform.home / "accounts"
    folder.mkdir()
    (town.platform.home / "accounts.py").write_text(ACCOUNTS_MODULE)
    town.platform.thyme("commit", str(town.platform.home / "accounts.py"))
    changes = account_changes()
    (folder / "0.jsonl").write_text(json_lines(changes[:200]))
    expected = in_process(ACCOUNTS_MODULE, "Account", changes[:200], town.platform.home)
    assert wait_until(lambda: _sizes(town) == expected, DEADLINE_S, every_s=0.3), (_sizes(town), expected)
    town.platform.kill("ray::PipelineWorker")
    (folder / "1.jsonl").write_text(json_lines(changes[200:]))
    expected = in_process(ACCOUNTS_MODULE, "Account", changes, town.platform.home)
    assert wait_until(lambda: _sizes(town) == expected, DEADLINE_S, every_s=0.3), (_sizes(town), expected)
    assert _sizes(town, timestamp=changes[-1]["at"]) == expected


def _sizes(town: Town, **options: str) -> list[dict[str, object]] | None:
    try:
        return [town.client.query("SizeFeatures", str(size), **options).to_dict()[0] for size in SIZES]
    except ThymeError:
        return None


def _fleet(town: Town) -> dict[str, tuple[int, ...]]:
    try:
        rows = town.client.query_batch("FleetFeatures", CITIES).to_dict()
    except ThymeError:
        return {}
    return {row["city"]: (row["rides"], row["cents"]) for row in rows}


def _empty(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _ray_environment(platform: Platform) -> dict[str, str]:
    lines = platform.thyme("ray-env").splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def test_an_offline_read_of_many_rows_is_a_job_and_answers_what_the_replica_does(town: Town) -> None:
    town.drive(2, 1_000)
    town.settles()
    newest = datetime.fromtimestamp(START_S + town.rows // 10, UTC)
    asked = [
        {"entity_id": (*CITIES, "nowhere")[number % (len(CITIES) + 1)], "timestamp": newest - timedelta(seconds=number)}
        for number in range(2 * OFFLINE_ROWS)
    ]
    before = len(jobs_named(town, "jobs.training_set"))
    halves = (asked[:OFFLINE_ROWS], asked[OFFLINE_ROWS:])
    by_replica = [town.client.query_offline("CityFeatures", half) for half in halves]
    assert len(jobs_named(town, "jobs.training_set")) == before
    by_job = town.client.query_offline("CityFeatures", asked)
    assert len(jobs_named(town, "jobs.training_set")) == before + 1
    rows = by_job.to_dict()
    assert rows == [row for half in by_replica for row in half.to_dict()]
    assert len({row["rides"] for row in rows}) > len(CITIES)
    # Once more as a training set: asked for over HTTP, made by a job on Ray Data, with a manifest.
    made = town.client.query_offline("CityFeatures", asked, training_set=True)
    assert made.to_dict() == rows
    assert made.metadata["manifest"]["rows"] == len(asked)
    shown = town.client.training_set(made.metadata["training_set"])
    assert (shown["state"], shown["attempt"], shown["parts_done"]) == ("complete", 1, shown["parts"])
    assert len(jobs_named(town, shown["id"])) == 1


def test_injected_skew_is_told_of_with_the_runs_that_served_it_and_nothing_else_is(town: Town) -> None:
    town.settles()
    seconds = [0.0]
    with closing(MonitorTask(_monitored(town), seconds=lambda: seconds[0])) as monitor:
        monitor.step()  # the first round only begins
        right = town.client.query("CityFeatures", "ams")
        with _mistaken(town, "by_city@1", "ams", right="ber"):
            wrong = town.client.query("CityFeatures", "ams")
        fine = [right, town.client.query("CityFeatures", "cph"), town.client.query_batch("RiderFeatures", RIDERS)]
        differing = {("CityFeatures", name) for name in ("rides", "cents") if wrong[name] != right[name]}
        assert differing
        for read in (wrong, *fine):
            assert wait_until(lambda run=read.query_run_id: _is_recorded(town, run), DEADLINE_S, every_s=0.1)
        seconds[0] += 61  # the next round is due
        monitor.step()
    (event,) = town.client.events(event_type="consistency_mismatch")
    assert (event["severity"], event["subject"]) == ("error", "CityFeatures")
    assert wrong.query_run_id in str(event["detail"])
    found = {(each["target"], each["feature"]): each for each in town.client.consistency()["features"]}
    causes = {name: each["causes"] for name, each in found.items() if each["different"]}
    assert causes == {name: {"unknown": 1} for name in differing}
    assert found["RiderFeatures", "wet"]["compared"] == 1


def _monitored(town: Town) -> Settings:
    """The platform's settings as a monitor in this process reads them: every run is old enough at once."""
    online, monitor = {"redis_url": town.platform.online_url()}, {"consistency_settle_s": 0, "statistics_every_s": 0}
    return load_settings(data_dir=town.platform.data, online=online, monitor=monitor)


@contextmanager
def _mistaken(town: Town, pipeline: str, key: str, *, right: str) -> Iterator[None]:
    """Meanwhile the online store holds the state of another key, which nobody wrote there."""
    url = town.platform.online_url()
    with closing(OnlineStore(url)) as states, closing(redis.Redis.from_url(url)) as store:
        state = StateName(pipeline, states.generation(pipeline))
        before = store.dump(state.key(key))
        store.restore(state.key(key), 0, store.dump(state.key(right)), replace=True)
        store.ping()  # it has told the replicas when it answers this
        try:
            yield
        finally:
            store.restore(state.key(key), 0, before, replace=True)
            store.ping()


def _is_recorded(town: Town, run_id: str) -> bool:
    try:
        return bool(town.client.query_run(run_id))
    except NotFound:
        return False


def jobs_named(town: Town, module: str) -> list[Job]:
    with Launcher.of(town.platform.settings) as launcher:
        return [job for job in launcher.jobs() if module in job.entrypoint]


def test_clients_of_other_platforms_move_by_changing_a_url(town: Town) -> None:
    url, key = f"http://127.0.0.1:{town.platform.ports[0]}", (town.platform.data / "secrets" / "admin-key").read_text()
    for example in ("tecton", "snowflake"):
        path = Path(__file__).parents[2] / "examples" / example / "features.py"
        # It waits a minute for new workers, which a machine full of tests may take longer to start.
        subprocess.run([town.platform.binary("python"), path], env=town.platform.environment, check=False)
    # By a published client: every call, and every exception that a request can bring about.
    assert wait_until(lambda: _paid(town) == 2, DEADLINE_S, every_s=0.2), town.client.jobs()
    assert wait_until(lambda: refused_by_tecton_client(url, key) == "", DEADLINE_S, every_s=0.2)
    # Each view applies what was loaded in its own time.
    assert wait_until(lambda: read_by_tecton_client(url, key)[0][:7:6] == ["2", "NO"], DEADLINE_S, every_s=0.2)
    plain, *others = read_by_tecton_client(url, key)
    assert others == [plain, plain]
    town.client.create_principal("service_account", "stranger")
    stranger = town.client.create_key("reader", name="stranger", principal="stranger")["key"]
    slow = town.client.create_key("reader", name="slow", rate_limit=1)["key"]
    keys = {"UnauthorizedError": "nobody's", "ForbiddenError": stranger, "ResourceExhaustedError": slow}
    changes: dict[str, dict[str, Any]] = {
        "BadRequestError": {"join_key_map": {}},
        "NotFoundError": {"feature_service_name": "nothing"},
    }
    for name in (*keys, *changes):
        asked = partial(refused_by_tecton_client, url, keys.get(name, key), **changes.get(name, {}))
        assert wait_until(lambda asked=asked, name=name: asked() == name, DEADLINE_S, every_s=0.05), name
    # An ingest is answered when its view has applied it: the read that follows sees it.
    now = format_instant(SystemClock().now())
    assert wait_until(lambda: _is_applied(url, key, now), DEADLINE_S, every_s=0.2)
    assert query_as_snowflakes_client(url, key)["txn_count_24h"] == 1


def _paid(town: Town) -> int:
    try:
        return int(town.client.query("UserPayments", "u1")["payments_24h"][0] or 0)
    except ThymeError:
        return 0


def _is_applied(url: str, key: str, timestamp: str) -> bool:
    told = ingest_as_snowflakes_client(url, key, timestamp)  # a replica knows a new stream source within a second
    return told["records"] == {"total": 1, "failed": 0} and told["feature_views"]["failed"] == 0
