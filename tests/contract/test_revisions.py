"""Revisions of definitions and edits of their metadata, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa

from featurelib.clock import SECOND
from featurelib.definitions import Commit, DatasetDef, FeatureDef, FeaturesetDef, FieldDef
from featurelib.errors import NotFound
from featurelib.metadata import Metadata
from featurelib.plan import plan
from featurelib.stores import migrations
from featurelib.stores.metadata_edits import MetadataEdits
from featurelib.stores.registry import Identity, NewEvent, Registry
from featurelib.stores.revisions import Revisions
from tests.support.clocks import MovedClock

RIDE = DatasetDef(
    name="Ride",
    fields=(FieldDef(name="ride", type="str", key=True), FieldDef(name="at", type="datetime", timestamp=True)),
)
RIDER = FeaturesetDef(name="Rider", features=(FeatureDef(name="rider", type="int"),))
EVENT = NewEvent(event_type="metadata_edited", source="test", subject="Rider", message="\0 and \ud800")
ODD = "a \0 NUL, 'quotes', ünïcode"


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock(SECOND)


@pytest.fixture
def registry(database_url: str, clock: MovedClock) -> Iterator[Registry]:
    registry = Registry(database_url, clock)
    registry.migrate()
    yield registry
    registry.close()


def commit(registry: Registry, clock: MovedClock, *featuresets: FeaturesetDef, message: str = "") -> str:
    clock.advance(SECOND)
    body = Commit(datasets=(RIDE,), featuresets=featuresets, message=message)
    return registry.commit(body, plan, None).commit_id


def said(**members: object) -> FeaturesetDef:
    return RIDER.model_copy(update={"metadata": Metadata.model_validate(members)})


def grown(*names: str) -> FeaturesetDef:
    more = tuple(FeatureDef(name=name, type="int", request=True) for name in names)
    return RIDER.model_copy(update={"features": (*RIDER.features, *more)})


def test_every_change_of_a_definition_is_kept_with_its_commit(registry: Registry, clock: MovedClock) -> None:
    first, second = commit(registry, clock, RIDER), commit(registry, clock, grown("fee"))
    revisions = Revisions(registry.database)
    history = revisions.of(Identity("featureset", "Rider"))
    assert [(each.revision, each.commit_id, each.created_at) for each in history] == [
        (1, first, 2 * SECOND),
        (2, second, 3 * SECOND),
    ]
    assert [revisions.at(Identity("featureset", "Rider"), number) for number in (1, 2, 3)] == [
        RIDER,
        grown("fee"),
        None,
    ]
    assert len(revisions.of(Identity("dataset", "Ride"))) == 1
    assert revisions.of(Identity("dataset", "Rider")) == []
    assert revisions.written()[Identity("featureset", "Rider")] == (2 * SECOND, 3 * SECOND)


def test_an_edit_shows_on_every_version_of_a_dataset_whatever_the_older_ones_said(
    registry: Registry, clock: MovedClock
) -> None:
    first, second = (
        RIDE.model_copy(update={"version": number, "metadata": Metadata(owner=owner, project=owner)})
        for number, owner in ((1, "a"), (2, "b"))
    )
    for dataset in (first, second):
        registry.commit(Commit(datasets=(dataset,), message=""), plan, None)
    edits = MetadataEdits(registry.database)
    edits.put(("dataset", "Ride"), {"owner": "edited"}, EVENT, clock.now())
    shown = [edits.all()["dataset", "Ride"].over(dataset.metadata) for dataset in (first, second)]
    assert [(each.owner, each.project) for each in shown] == [("edited", "a"), ("edited", "b")]


def test_what_an_older_platform_stored_is_the_first_revision(
    database_url: str, tmp_path: Path, clock: MovedClock
) -> None:
    """A registry as the migration before revisions left it: filled from a new one, with the columns there were."""
    filled, registry = Registry(f"sqlite:///{tmp_path / 'filled.db'}", clock), Registry(database_url, clock)
    filled.migrate()
    commit(filled, clock, RIDER)
    key, _ = filled.create_key("admin", "first")
    if registry.database.is_sqlite:
        file = Path(database_url.removeprefix("sqlite:///"))
        file.parent.mkdir()
        file.touch()
    with filled.database.read() as source, registry.database.exclusive() as target:
        migrations.upgrade(target, "0003")
        before = sa.MetaData()
        before.reflect(target)
        for name in ("registry_version", "commits", "definitions", "api_keys", "events"):
            columns = before.tables[name].columns.keys()
            rows = source.execute(sa.text(f"SELECT {', '.join(columns)} FROM {name} ORDER BY 1")).mappings().all()
            target.execute(before.tables[name].delete())
            target.execute(before.tables[name].insert(), [without_sequence(name, row) for row in rows])
    filled.close()
    registry.migrate()
    (kept,) = registry.keys()
    assert (kept.fingerprint, kept.rate_limit) == (key.fingerprint, None)
    version = registry.version()
    commit(registry, clock, grown("fee"))
    revisions, rider = Revisions(registry.database), Identity("featureset", "Rider")
    assert [each.revision for each in revisions.of(rider)] == [1, 2]
    assert [revisions.at(rider, number) for number in (1, 2)] == [RIDER, grown("fee")]
    assert [registry.definitions_at(at).featuresets for at in (0, version, version + 1)] == [
        (),
        (RIDER,),
        (grown("fee"),),
    ]
    registry.close()


def without_sequence(table: str, row: Mapping[str, object]) -> dict[str, object]:
    """The row as the platform inserted it: the database gives the numbers, 1 to the only commit."""
    return {name: value for name, value in row.items() if name != "sequence" or table == "definitions"}


def test_a_commit_that_comes_again_has_its_newest_entry_and_what_that_one_changed(
    registry: Registry, clock: MovedClock
) -> None:
    first = commit(registry, clock, said(owner="a"))
    commit(registry, clock, said(owner="b"))
    assert commit(registry, clock, said(owner="a"), message="back") == first
    revisions = Revisions(registry.database)
    found = revisions.commit(first)
    assert found is not None
    assert found.message == "back"
    (changed,) = revisions.changed_by(found)
    assert (changed.before, changed.after) == (said(owner="b"), said(owner="a"))
    assert revisions.commit("0" * 32) is None


def test_the_first_commit_changes_nothing_that_was_there_before(registry: Registry, clock: MovedClock) -> None:
    revisions = Revisions(registry.database)
    found = revisions.commit(commit(registry, clock, RIDER))
    assert found is not None
    assert [(each.identity.kind, each.before) for each in revisions.changed_by(found)] == [
        ("dataset", None),
        ("featureset", None),
    ]


def test_code_is_deprecated_since_the_last_time_it_began_to_say_so(registry: Registry, clock: MovedClock) -> None:
    for deprecated in (True, False, True):
        commit(registry, clock, said(deprecated=deprecated))
    commit(registry, clock, said(deprecated=True, owner="x"))
    rider, ride = Identity("featureset", "Rider"), Identity("dataset", "Ride")
    assert Revisions(registry.database).deprecated_since([rider, ride]) == {rider: 4 * SECOND}
    assert Revisions(registry.database).deprecated_since([]) == {}


def test_an_edit_lasts_until_the_code_changes_that_member_and_never_comes_back(
    registry: Registry, clock: MovedClock
) -> None:
    edits = MetadataEdits(registry.database)
    commit(registry, clock, said(owner="a"))
    done = edits.put(("featureset", "Rider"), {"owner": ODD, "tags": {ODD: ""}}, EVENT, clock.now())
    assert done.changed == ["owner", "tags"]
    commit(registry, clock, said(owner="a", description="more"))
    edit = edits.all()["featureset", "Rider"]
    assert edit.over(said(owner="a", description="more").metadata) == Metadata(
        owner=ODD, tags={ODD: ""}, description="more"
    )
    commit(registry, clock, said(owner="b"))
    assert edits.all()["featureset", "Rider"].edit == {"tags": {ODD: ""}}
    commit(registry, clock, said(owner="a"))
    assert edits.all()["featureset", "Rider"].edit == {"tags": {ODD: ""}}
    commit(registry, clock, said(owner="a", tags={"pii": ""}))
    assert edits.all() == {}


def test_an_edit_to_what_the_code_says_is_none(registry: Registry, clock: MovedClock) -> None:
    edits = MetadataEdits(registry.database)
    commit(registry, clock, said(owner="a"))
    assert edits.put(("featureset", "Rider"), {"owner": "a"}, EVENT, clock.now()).changed == []
    assert (edits.all(), registry.events(event_type="metadata_edited")) == ({}, [])
    edits.put(("featureset", "Rider"), {"owner": "b"}, EVENT, clock.now())
    assert edits.put(("featureset", "Rider"), {"owner": "a"}, EVENT, clock.now()).changed == ["owner"]
    assert edits.all() == {}
    assert len(registry.events(event_type="metadata_edited")) == 2


def test_the_first_mark_dates_a_deprecation(registry: Registry, clock: MovedClock) -> None:
    edits = MetadataEdits(registry.database)
    commit(registry, clock, RIDER)
    for reason in ("one", "two"):
        members = {"deprecated": True, "deprecation_reason": reason}
        edits.put(("featureset", "Rider"), members, EVENT, clock.now())
        clock.advance(SECOND)
    edit = edits.all()["featureset", "Rider"]
    assert (edit.deprecated_at, edit.edit["deprecation_reason"]) == (2 * SECOND, "two")


def test_an_edit_of_what_is_not_committed_is_refused_and_stores_nothing(registry: Registry, clock: MovedClock) -> None:
    commit(registry, clock, RIDER)
    with pytest.raises(NotFound, match="source 'Rider'"):
        MetadataEdits(registry.database).put(("source", "Rider"), {"owner": "a"}, EVENT, clock.now())
    assert registry.events(event_type="metadata_edited") == []
