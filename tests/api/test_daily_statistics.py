"""Statistics of days over real stores: made of what came in, made again when that changes, and compared with before."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from featurelib.clock import DAY, HOUR, MINUTE, format_instant, parse_instant
from featurelib.compile import compile_module
from featurelib.engine.extractor import INLINE
from featurelib.errors import ValueOverflow
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.history import History
from featurelib.stores.statistics import DAY_ITSELF, Statistics, Subject
from jobs.reread import Versions
from jobs.statistics import DailyStatistics

RIDES_PY = Path(__file__).parent / "rides.py"
TODAY = parse_instant("2026-03-01T00:00:00Z")
RIDER, RIDE = Subject("featureset", "Rider"), Subject("dataset", "Ride@1")


class Counted:
    """A platform whose days the test has made."""

    def __init__(self, platform, client) -> None:
        self.platform = platform
        self.client = client
        self.kept = Statistics(platform.registry.database)
        history = History(Archive(platform.settings.archive_url), platform.log)
        self.job = DailyStatistics(
            platform.registry,
            history,
            platform.services.stores.history,
            versions=Versions(platform.registry, INLINE),
            settings=platform.settings.monitor,
            clock=platform.clock,
        )

    async def change(self, before: str, after: str) -> None:
        """Commit the rides with something changed."""
        path = self.platform.settings.data_dir / "changed_rides.py"
        path.write_text(RIDES_PY.read_text().replace(before, after))
        done = await self.client.post("/api/v1/commit", content=compile_module(path).model_dump_json())
        assert done.status_code == 200, done.text

    def make(self) -> int:
        """Make every day that is due; how many those were."""
        made = 0
        while self.job.step():
            made += 1
        return made

    async def rides(self, day: int, fares: list[float], city: str = "Oslo") -> None:
        """A ride each of as many riders, some days before today."""
        at = TODAY - day * DAY + 8 * HOUR
        events = [
            {"ride": f"d{day}-{rider}-{fare}", "rider": rider, "city": city, "fare": fare}
            | {"at": format_instant(at + rider * MINUTE)}
            for rider, fare in enumerate(fares)
        ]
        for start in range(0, len(events), 300):
            done = await self.client.post(
                "/api/v1/log", json={"dataset": "Ride", "events": events[start : start + 300]}
            )
            assert done.json()["events_sent"] == len(events[start : start + 300]), done.text

    def day(self, subject: Subject, name: str, day: int = 0):
        (found,) = self.kept.of(subject, TODAY - day * DAY, TODAY - day * DAY, name)
        return found

    def told(self) -> list[tuple[str, str]]:
        events = self.platform.registry.events(event_type="feature_drift")
        return [(event.severity, event.subject) for event in reversed(events)]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    monitor = {"statistics_days": 4, "drift_rows": 300, "drift_days": 1}
    return settings.model_copy(update={"monitor": settings.monitor.model_copy(update=monitor)})


@pytest.fixture
async def counted(platform, client) -> Counted:
    await platform.commit_rides(client)
    platform.create_logs()
    return Counted(platform, client)


async def test_a_day_of_a_featureset_is_what_each_active_entity_had_after_its_last_record(counted):
    await counted.rides(0, [10.0, 20.0, 30.0])
    await counted.rides(1, [1.0])
    counted.make()
    trips, spent, each = (counted.day(RIDER, name).summary for name in ("trips", "spent", "each"))
    assert (trips.rows, trips.nulls, trips.mean, trips.max) == (3, 0, 4 / 3, 2.0)  # rider 0 rode yesterday too
    assert (spent.quantiles["0.5"], spent.max) == (20.0, 30.0)
    assert each.min == 11.0 / 2 + 2.0
    assert counted.day(RIDER, "cities").summary.max == 2.0
    assert counted.day(RIDER, "rider").summary.model_dump(exclude_defaults=True) == {"rows": 3, "distinct": 3}
    assert counted.day(RIDER, "trips", day=1).rows == 1


async def test_what_only_a_request_brings_has_no_statistics_and_what_needs_it_has_none(counted):
    await counted.rides(0, [10.0])
    counted.make()
    names = {each.name for each in counted.kept.of(Subject("featureset", "Rider"), TODAY, TODAY)}
    assert names == {DAY_ITSELF, "rider", "trips", "spent", "cities", "last_at", "each", "hours_since"}
    assert counted.kept.of(Subject("featureset", "Quote"), TODAY, TODAY) == []


async def test_an_extractor_that_fails_takes_what_is_computed_and_nothing_that_is_looked_up(counted):
    await counted.rides(0, [10.0] * 3)
    await counted.change("1 / trips", "1 / (trips - 1)")
    counted.make()
    names = {each.name for each in counted.kept.of(Subject("featureset", "Fragile"), TODAY, TODAY)}
    assert names == {DAY_ITSELF, "rider", "trips"}


async def test_a_day_that_cannot_be_made_holds_up_no_other(counted, monkeypatch):
    await counted.rides(0, [10.0])
    read = counted.job._read

    def overflowing(due, compiled):
        if due.subject == RIDER:
            raise ValueOverflow("a sum left the range of int")
        return read(due, compiled)

    monkeypatch.setattr(counted.job, "_read", overflowing)
    counted.make()
    assert counted.day(RIDE, "fare").rows == 1
    assert [each.name for each in counted.kept.of(RIDER, TODAY, TODAY)] == [DAY_ITSELF]


async def test_a_day_of_a_dataset_is_of_its_records(counted):
    await counted.rides(0, [10.0, 20.0], city="Oslo")
    await counted.rides(0, [30.0] * 12, city="Bergen")
    counted.make()
    fare, city = counted.day(RIDE, "fare").summary, counted.day(RIDE, "city").summary
    assert (fare.rows, fare.distinct, fare.min, fare.max) == (14, 3, 10.0, 30.0)
    assert fare.histogram.counts[0] == 1
    assert [(text.value, text.rows) for text in city.texts] == [("Bergen", 12)]  # two rows may name somebody
    assert counted.day(RIDE, "ride").summary.texts == ()


async def test_days_are_made_again_while_they_last_once_they_are_over_and_when_their_meaning_changes(counted):
    await counted.rides(0, [10.0])
    everything = counted.make()
    assert counted.make() == 0
    counted.platform.clock.advance(HOUR)
    subjects = len({subject for subject, _ in counted.kept.days()})
    assert everything == 4 * subjects
    assert counted.make() == subjects  # of four days one lasts
    counted.platform.clock.advance(DAY)
    assert counted.make() == 3 * subjects  # today's, yesterday's, and for good the day's before
    fee = "fee: float = feature(request=True, default=2.0)"
    await counted.change(fee, fee.replace("2.0", "3.0"))
    assert counted.make() == 4 * len({"Rider", "RiderReplayed"})  # the second reads the first


async def test_days_are_made_again_without_whom_was_erased(counted):
    await counted.rides(0, [10.0, 99.0])
    everything = counted.make()
    counted.platform.clock.advance(MINUTE)
    async with counted.platform.client("admin") as admin:
        done = await admin.post("/api/v1/erase", json={"dataset": "Ride", "entity_ids": ["d0-1-99.0"]})
    assert done.is_success, done.text
    assert 0 < counted.make() < everything  # cities are of nobody's rides
    assert counted.day(RIDE, "fare").summary.max == 10.0
    assert counted.day(RIDER, "spent").summary.max == 10.0


async def test_a_feature_that_moves_is_told_of_once_and_when_it_is_back(counted):
    chosen = random.Random(3)
    for day, mean in ((2, 50), (1, 75), (0, 75)):
        await counted.rides(day, [round(chosen.gauss(mean, 10), 2) for _ in range(400)])
    counted.make()
    fare = counted.day(RIDE, "fare", day=1)
    assert fare.psi > 1.0
    assert 0.1 < fare.js <= 1.0
    assert fare.reference_rows == 400
    assert counted.day(RIDE, "city", day=1).psi == 0.0
    assert ("warn", "Ride@1.fare") in counted.told()
    assert not [subject for _, subject in counted.told() if subject.endswith(("city", "ride"))]
    counted.platform.clock.advance(DAY)
    counted.make()
    counted.platform.clock.advance(HOUR)
    counted.make()
    assert [severity for severity, subject in counted.told() if subject == "Ride@1.fare"] == ["warn", "info"]


async def test_statistics_are_shown_by_day_with_their_drift(counted):
    for day, fares in ((2, [1.0, 2.0, 3.0]), (1, [1.0, 2.0]), (0, [30.0, 40.0])):
        await counted.rides(day, fares)
    counted.make()
    shown = (await counted.client.get("/api/v1/featuresets/Rider/statistics?feature=spent")).json()
    assert (shown["since"], shown["until"], shown["without"]) == ("2026-02-23", "2026-03-01", [])
    days = shown["columns"][0]["days"]
    assert [(day["day"], day["complete"], day["rows"]) for day in days] == [
        ("2026-02-27", True, 3),
        ("2026-02-28", True, 2),
        ("2026-03-01", False, 2),
    ]
    assert days[0]["drift"] is None
    assert days[2]["drift"]["reference_rows"] == 2
    assert "points" not in days[0]
    asked = "/api/v1/datasets/Ride/statistics?column=fare&reference_since=2026-02-27&reference_until=2026-02-28"
    (fare,) = (await counted.client.get(asked)).json()["columns"]
    assert [day["drift"]["reference_rows"] for day in fare["days"]] == [5, 5, 5]
    assert fare["days"][2]["histogram"]["edges"][0] == 30.0
    everything = (await counted.client.get("/api/v1/featuresets/Rider/statistics")).json()
    assert everything["without"] == ["fee"]


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("featuresets/Nobody/statistics", 404, "'Nobody' is not committed"),
        ("datasets/Ride/statistics?version=3", 404, "of version 3 is not committed"),
        ("featuresets/Rider/statistics?feature=fares", 404, "has no 'fares'; it has rider, trips"),
        ("featuresets/Rider/statistics?since=yesterday", 400, "since"),
        ("featuresets/Rider/statistics?since=2026-03-02&until=2026-03-01", 400, "until: it is a day before since"),
        ("featuresets/Rider/statistics?since=2025-03-02&until=2026-03-01", 400, "at most 90 days, found 365"),
        ("featuresets/Rider/statistics?reference_since=2026-03-02", 400, "reference_until: missing"),
        ("consistency?hours=0", 400, "hours"),
    ],
)
async def test_what_cannot_be_shown_is_refused_with_the_reason(counted, path, status, said):
    answer = await counted.client.get(f"/api/v1/{path}")
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text
