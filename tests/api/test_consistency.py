"""The consistency monitor over real stores: what was served is compared with history, and told of with its cause."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from featurelib.clock import DAY, HOUR, MINUTE, SECOND
from featurelib.compile import compile_module
from featurelib.engine.extractor import INLINE
from featurelib.stores.backfill_requests import BackfillRequests
from featurelib.stores.checks import Checks
from featurelib.stores.erasures import ErasureRecord, Erasures
from featurelib.stores.online import StateName
from jobs.consistency import ConsistencyCheck, Round
from jobs.reread import Versions

HERE = Path(__file__).parent
TRIPS = [
    {"trip": "t1", "driver": "ann", "car": "c1", "fare": 10.1, "at": "2026-03-01T09:00:00Z"},
    {"trip": "t2", "driver": "ann", "car": "c2", "fare": 5.7, "at": "2026-03-01T11:00:00Z"},
    {"trip": "t3", "driver": "bob", "car": "c1", "fare": 4.3, "at": "2026-03-01T10:00:00Z"},
]
DRIVERS = [
    {"driver": "ann", "level": 1, "at": "2026-03-01T08:00:00Z"},
    {"driver": "bob", "level": 2, "at": "2026-03-01T08:00:00Z"},
]
LATE = {"trip": "t4", "driver": "ann", "car": "c1", "fare": 100.5, "at": "2026-03-01T10:30:00Z"}
ANN = "/features?featureset=Earning&entity_id=ann"


class Monitored:
    """A platform with a monitor whose rounds the test runs."""

    def __init__(self, platform, client) -> None:
        self.platform = platform
        self.client = client
        self.checks = Checks(platform.registry.database)
        services = platform.services
        self.monitor = ConsistencyCheck(
            platform.registry,
            services.stores.history,
            services.digests,
            versions=Versions(platform.registry, INLINE),
            settings=platform.settings.monitor,
            clock=platform.clock,
        )

    async def commit(self, source: str) -> None:
        path = self.platform.settings.data_dir / "committed_fleet.py"
        path.write_text(source)
        done = await self.client.post("/api/v1/commit", content=compile_module(path).model_dump_json())
        assert done.status_code == 200, done.text
        await self.platform.services.current.refresh()

    async def send(self, dataset: str, *events: dict) -> None:
        done = await self.client.post("/api/v1/log", json={"dataset": dataset, "events": list(events)})
        assert done.json()["events_sent"] == len(events), done.text

    async def ask(self, url: str, body: dict | None = None) -> str:
        """Ask, and say as which run it was recorded."""
        answer = await self.client.request("POST" if body else "GET", url, json=body)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-query-run-id"]

    async def round(self) -> Round:
        """What the round a minute later finds."""
        await self.platform.services.writer.flush()
        self.platform.clock.advance(MINUTE)
        return self.monitor.round()

    def differing(self) -> dict[str, dict[str, int]]:
        """Per feature that differed so far how often, by cause."""
        found = self.checks.of(self.platform.clock.now() - DAY)
        return {f"{each.target}.{each.feature}": each.causes for each in found if each.different}

    def told(self) -> list[tuple[str, str]]:
        """Severity and subject of what people were told, oldest first."""
        events = self.platform.registry.events(event_type="consistency_mismatch")
        return [(event.severity, event.subject) for event in reversed(events)]

    def mistake(self, pipeline: str, right: str, wrong: str) -> None:
        """Put the state of one key in the place of another's: what is served of it is wrong, and nobody wrote it."""
        store = redis.Redis.from_url(self.platform.settings.online.redis_url.get_secret_value())
        state = StateName(pipeline, 1)
        store.restore(state.key(wrong), 0, store.dump(state.key(right)), replace=True)
        store.close()


@pytest.fixture
async def fleet(platform, client) -> Monitored:
    """The first records folded, and the monitor's first round, which only begins."""
    made = Monitored(platform, client)
    await made.commit((HERE / "fleet.py").read_text())
    platform.create_logs()
    await made.send("Driver", *DRIVERS)
    platform.fold()
    await made.send("Trip", *TRIPS)
    platform.fold()
    assert made.monitor.round() == Round()
    platform.clock.advance(MINUTE)
    return made


ONLINE = {
    "one entity": (ANN, None),
    "unknown entity": ("/features?featureset=Earning&entity_id=eve", None),
    "event clock": ("/features?featureset=Replaying&entity_id=ann", None),
    "join and graph": ("/features?featureset=CarState&entity_id=c1", None),
    "look-ups in extractors": ("/features?featureset=Compared&entity_id=ann", None),
    "batch": ("/features/batch", {"featureset": "CarState", "entity_ids": ["c1", "c3", "c2", "c1"]}),
    "batch with look-ups": ("/features/batch", {"featureset": "Compared", "entity_ids": ["bob", "eve", "ann"]}),
    "lookup": ("/features?entity_type=Car&entity_id=c1", None),
}


async def test_what_is_served_right_is_compared_and_nothing_is_told(fleet):
    for url, body in ONLINE.values():
        await fleet.ask(url, body)
    done = await fleet.round()
    assert (done.runs, done.failed) == (len(ONLINE), 0)
    assert sum(tally.compared for tally in done.tallies) == 5 + 5 + 3 + 4 + 4 + 4 + 4 + 3
    assert fleet.differing() == {}
    assert fleet.told() == []


async def test_a_run_is_looked_at_once_and_reads_of_the_past_never(fleet):
    await fleet.ask(ANN)
    await fleet.ask(f"{ANN}&timestamp=2026-03-01T11:30")
    await fleet.ask("/features?entity_type=Earned&entity_id=bob&timestamp=2026-03-01T12:00")
    queries = [{"entity_id": "ann", "timestamp": "2026-03-01T11:59:00Z"}]
    await fleet.ask("/features/offline", {"featureset": "Earning", "queries": queries})
    assert (await fleet.round()).runs == 1
    assert (await fleet.round()).runs == 0


async def test_skew_that_nothing_explains_is_told_of_within_five_minutes(fleet):
    fleet.mistake("by_driver@1", right="bob", wrong="ann")
    began = fleet.platform.clock.now()
    run = await fleet.ask(ANN)
    await fleet.round()
    assert fleet.platform.clock.now() - began < 5 * MINUTE
    assert fleet.differing() == {f"Earning.{name}": {"unknown": 1} for name in ("trips", "fares", "mean")}
    assert fleet.told() == [("error", "Earning")]
    (event,) = fleet.platform.registry.events(event_type="consistency_mismatch")
    assert {worst["run"] for each in event.detail["features"].values() for worst in each["worst"]} == {run}
    assert "ann" not in event.model_dump_json()


async def test_skew_is_told_of_once_until_it_is_over(fleet):
    good = redis.Redis.from_url(fleet.platform.settings.online.redis_url.get_secret_value())
    before = good.dump(StateName("by_driver@1", 1).key("ann"))
    fleet.mistake("by_driver@1", right="bob", wrong="ann")
    for _ in range(2):
        await fleet.ask(ANN)
        await fleet.round()
    good.restore(StateName("by_driver@1", 1).key("ann"), 0, before, replace=True)
    good.close()
    await fleet.platform.services.stores.online.refresh(["by_driver@1"])
    await fleet.ask(ANN)
    await fleet.round()
    assert fleet.told() == [("error", "Earning"), ("info", "Earning")]


async def test_a_monitor_that_was_started_again_tells_nothing_twice(fleet):
    fleet.mistake("by_driver@1", right="bob", wrong="ann")
    await fleet.ask(ANN)
    await fleet.round()
    again = Monitored(fleet.platform, fleet.client)
    await again.ask(ANN)
    assert (await again.round()).runs == 1
    assert again.told() == [("error", "Earning")]


async def test_a_record_that_comes_after_the_read_is_a_late_one(fleet):
    run = await fleet.ask("/features/batch", {"featureset": "Earning", "entity_ids": ["bob", "ann", "eve"]})
    await fleet.ask(ANN)
    fleet.platform.clock.advance(SECOND)
    await fleet.send("Trip", LATE)
    await fleet.round()
    assert fleet.differing() == {f"Earning.{name}": {"late_record": 2} for name in ("trips", "fares", "mean")}
    (fares,) = [each for each in fleet.checks.of(0) if each.feature == "fares"]
    assert [(each.place, each.times) for each in fares.worst] in ([(1, 2)], [(0, 2)])
    assert fares.compared == 2
    assert run


async def test_a_record_that_was_accepted_and_not_applied_is_named_so(fleet):
    await fleet.send("Trip", LATE)
    fleet.platform.clock.advance(SECOND)
    await fleet.ask(ANN)
    await fleet.round()
    assert fleet.differing() == {f"Earning.{name}": {"not_applied": 1} for name in ("trips", "fares", "mean")}


async def test_differences_with_a_cause_are_told_of_above_the_rate_only(fleet):
    for _ in range(10):
        await fleet.ask(ANN)
    fleet.platform.clock.advance(SECOND)
    await fleet.send("Trip", LATE)
    await fleet.round()
    assert fleet.told() == [("warn", "Earning")]


async def test_a_change_of_definitions_is_a_cause(fleet):
    await fleet.ask("/features?featureset=Earning&entity_id=eve")
    await fleet.commit(
        (HERE / "fleet.py").read_text().replace("ref=Earned.trips, default=0", "ref=Earned.trips, default=-1")
    )
    await fleet.round()
    assert fleet.differing() == {"Earning.trips": {"version_change": 1}}


async def test_a_backfill_under_way_is_a_cause(fleet):
    await fleet.client.post("/api/v1/backfills", json={"pipeline": "by_driver"})
    fleet.mistake("by_driver@1", right="bob", wrong="ann")
    fleet.platform.clock.advance(SECOND)
    await fleet.ask(ANN)
    await fleet.round()
    assert fleet.differing() == {f"Earning.{name}": {"backfill": 1} for name in ("trips", "fares", "mean")}


async def test_a_state_that_was_built_of_some_of_the_records_is_a_cause(fleet):
    requests = BackfillRequests(fleet.platform.registry.database, fleet.platform.clock)
    asked = requests.request("by_driver@1", since=fleet.platform.clock.now() - HOUR)
    requests.submitted(asked, "one")
    requests.began(asked.id, 2, 3)
    requests.built(asked.id)
    assert requests.completed(requests.get(asked.id), "done")
    fleet.mistake("by_driver@1", right="bob", wrong="ann")
    fleet.platform.clock.advance(SECOND)
    await fleet.ask(ANN)
    await fleet.round()
    assert {name for causes in fleet.differing().values() for name in causes} == {"backfill"}


async def test_an_erasure_since_is_a_cause(fleet):
    fleet.mistake("by_driver@1", right="bob", wrong="ann")
    await fleet.ask(ANN)
    fleet.platform.clock.advance(SECOND)
    receipt = ErasureRecord(
        id="5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11", dataset="Trip", entities=1, digests=(), tombstones={}, created_at=0
    )
    Erasures(fleet.platform.registry.database, fleet.platform.clock).accept(
        receipt.model_copy(update={"created_at": fleet.platform.clock.now()})
    )
    await fleet.round()
    assert {name for causes in fleet.differing().values() for name in causes} == {"erasure"}


async def test_a_run_whose_extractor_fails_now_does_not_hide_the_others(fleet):
    source = (HERE / "fleet.py").read_text()
    await fleet.ask("/features?featureset=Compared&entity_id=ann")
    await fleet.ask(ANN)
    failing = "row = Driver.lookup(ts, driver=driver)[0]"
    await fleet.commit(source.replace("row = Driver.lookup(ts, driver=driver)", failing))
    done = await fleet.round()
    assert (done.runs, done.failed) == (1, 1)


async def test_targets_that_are_seldom_read_are_looked_at_too(fleet):
    for _ in range(60):
        await fleet.ask(ANN)
    await fleet.ask("/features?featureset=CarState&entity_id=c1")
    done = await fleet.round()
    assert done.runs == fleet.platform.settings.monitor.consistency_runs
    assert {tally.target for tally in done.tallies} == {"Earning", "CarState"}


async def test_what_was_served_while_the_monitor_was_away_is_not_made_up_for(fleet):
    await fleet.ask(ANN)
    await fleet.platform.services.writer.flush()
    fleet.platform.clock.advance(HOUR)
    assert (await fleet.round()).runs == 0


async def test_what_was_found_is_shown_with_the_entities_and_the_runs(fleet):
    fleet.mistake("by_driver@1", right="bob", wrong="ann")
    run = await fleet.ask(ANN)
    await fleet.ask("/features?entity_type=Car&entity_id=c1")
    await fleet.round()
    found = (await fleet.client.get("/api/v1/consistency")).json()
    assert found["checked_until"] == "2026-03-01T12:01:30Z"
    first = found["features"][0]
    assert (first["target"], first["feature"], first["rate"], first["causes"]) == (
        "Earning",
        "fares",
        1.0,
        {"unknown": 1},
    )
    assert first["worst"] == [{"entity_id": "ann", "query_run": run, "times": 1}]
    (only,) = {each["kind"] for each in (await fleet.client.get("/api/v1/consistency?target=Car")).json()["features"]}
    assert only == "dataset"
    fleet.platform.services.audit.erase(["Earning"], {"ann": "erased:1"})
    after = (await fleet.client.get("/api/v1/consistency?target=Earning")).json()
    assert after["features"][0]["worst"][0]["entity_id"] == "erased:1"


async def test_metrics_are_of_what_was_found_lately(fleet):
    fleet.mistake("by_driver@1", right="bob", wrong="ann")
    await fleet.ask(ANN)
    await fleet.round()
    text = (await fleet.client.get("/metrics")).text
    labels = 'feature="fares",kind="featureset",target="Earning"'
    assert f"thyme_consistency_mismatch_rate{{{labels}}} 1.0" in text
    assert f'thyme_consistency_mismatches{{cause="unknown",{labels}}} 1.0' in text
    assert "thyme_consistency_age_seconds 30.0" in text
    fleet.platform.clock.advance(3 * HOUR)
    assert "thyme_consistency_mismatch_rate{" not in (await fleet.client.get("/metrics")).text
