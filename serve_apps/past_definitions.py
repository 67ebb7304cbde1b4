"""What definitions were before: the versions of a featureset, commits, and how each differs from the one before.

Knows no HTTP. Methods block (SQL): the routes call them in threads.
"""

from __future__ import annotations

from featurelib.clock import format_instant
from featurelib.definitions import FeaturesetDef
from featurelib.errors import NotFound
from featurelib.stores.registry import CommitRecord, Identity, Registry
from featurelib.stores.revisions import Changed, Revision, Revisions
from serve_apps import shapes
from serve_apps.catalogue import named
from serve_apps.diffs import differences, featureset_diff
from serve_apps.shapes import About, Json


class PastDefinitions:
    """What the routes of versions and commits answer with.

    Args:
        registry: what is committed, and was.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._revisions = Revisions(registry.database)

    def versions(self, name: str) -> Json:
        """The versions of a featureset: one per commit that changed it, newest first.

        Raises:
            NotFound: it is not committed.
        """
        return {"name": name, "versions": [_version(each) for each in reversed(self._history(name))]}

    def version(self, name: str, version: int) -> Json:
        """A featureset as it was in one of its versions; the metadata is what the code said then.

        Raises:
            NotFound: there is no such version.
        """
        history = self._history(name)
        found = self._at(name, version)
        revision = next(each for each in history if each.revision == version)
        about = About(found.metadata, history[0].created_at, revision.created_at)
        return {
            "name": name,
            **_version(revision),
            "spec": shapes.featureset_spec(found),
            "metadata": shapes.metadata_block(about),
        }

    def diff(self, name: str, start: int | None, end: int | None) -> Json:
        """What changed between two versions of a featureset: by default in the newest one.

        Raises:
            NotFound: there is no such version.
        """
        end = end or self._history(name)[-1].revision
        start = start or max(1, end - 1)
        return {
            "name": name,
            "from": start,
            "to": end,
            **featureset_diff(self._at(name, start), self._at(name, end)),
        }

    def commit(self, commit_id: str) -> Json:
        """One commit.

        Raises:
            NotFound: there is none of that id.
        """
        found = self._commit(commit_id)
        kept = found.receipt.model_dump(mode="json", include={"jobs_created", "topics_created"})
        return {**shapes.commit_record(found), **kept}

    def commit_diff(self, commit_id: str) -> Json:
        """What a commit changed, member by member.

        Raises:
            NotFound: there is none of that id.
        """
        found = self._commit(commit_id)
        changed = [_changed(each) for each in self._revisions.changed_by(found)]
        return {"id": found.commit_id, "version": found.version, "definitions": changed}

    def _history(self, name: str) -> list[Revision]:
        named(self._registry.definitions(), "featureset", name)
        return self._revisions.of(Identity("featureset", name))

    def _at(self, name: str, version: int) -> FeaturesetDef:
        found = self._revisions.at(Identity("featureset", name), version)
        if not isinstance(found, FeaturesetDef):
            raise NotFound(f"featureset {name[:128]!r} has no version {version}")
        return found

    def _commit(self, commit_id: str) -> CommitRecord:
        found = self._revisions.commit(commit_id)
        if found is None:
            raise NotFound(f"there is no commit {commit_id[:64]!r}")
        return found


def _version(revision: Revision) -> Json:
    return {
        "version": revision.revision,
        "parent_version": revision.revision - 1 or None,
        "created_at": format_instant(revision.created_at),
        "graph_commit_id": revision.commit_id,
    }


def _changed(changed: Changed) -> Json:
    identity, before = changed.identity, changed.before
    found = [] if before is None else [each._asdict() for each in differences(before, changed.after)]
    return {**identity._asdict(), "change": "added" if before is None else "updated", "changes": found}
