"""The catalogue: definitions found, followed, compared and described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featurelib.client.operations import Endpoints, Operation, name_of, named
from featurelib.client.wire import Request, Steps, listed


class Catalogue(Endpoints):
    """Operations that look definitions up, and say something of them."""

    @Operation
    def search(
        self,
        text: str = "",
        *,
        kinds: Sequence[str] = (),
        tags: Sequence[str] = (),
        owners: Sequence[str] = (),
        project: str | None = None,
        limit: int | None = None,
    ) -> Steps[dict[str, Any]]:
        """Definitions that match, by kind, and counts of their tags, owners and projects.

        Args:
            text: words, each part of a name, a feature, a column, a label or a description.
            kinds: of ``featureset``, ``dataset``, ``pipeline`` and ``source``; left out, all.
            tags: with all of these; ``key:value`` names a value too.
            owners: of any of these.
            project: of this one.
            limit: most of each kind.
        """
        lists = {
            name: ",".join(given) or None for name, given in (("kinds", kinds), ("tags", tags), ("owners", owners))
        }
        return (yield self.get("/api/v1/search", q=text, project=project, limit=limit, **lists)).read(dict)

    @Operation
    def lineage(
        self, node: Any = None, *, direction: str | None = None, level: str | None = None
    ) -> Steps[dict[str, Any]]:
        """What feeds what, from sources to features: ``nodes`` and ``edges``.

        Args:
            node: only what is around this one: a class, a name, or an id such as ``dataset:Ride``.
            direction: from there, ``upstream``, ``downstream`` or ``both``.
            level: ``definition``, or ``feature`` for columns and features too.
        """
        around = None if node is None else name_of(node)
        return (yield self.get("/api/v1/lineage", node=around, direction=direction, level=level)).read(dict)

    @Operation
    def dependents(self, kind: str, name: Any) -> Steps[list[dict[str, Any]]]:
        """What would break without a ``featureset``, ``dataset``, ``pipeline`` or ``source``."""
        answer = yield self.get(f"/api/v1/{named(kind)}s/{named(name)}/dependents")
        return answer.read(lambda tree: listed(tree["dependents"]))

    @Operation
    def featureset_versions(self, featureset: Any) -> Steps[list[dict[str, Any]]]:
        """The revisions of a featureset: which commit made each, and when."""
        answer = yield self.get(f"/api/v1/featuresets/{named(featureset)}/versions")
        return answer.read(lambda tree: listed(tree["versions"]))

    @Operation
    def featureset_version(self, featureset: Any, version: int) -> Steps[dict[str, Any]]:
        """One revision of a featureset, whole.

        Raises:
            NotFound: there is no such revision.
        """
        return (yield self.get(f"/api/v1/featuresets/{named(featureset)}/versions/{int(version)}")).read(dict)

    @Operation
    def featureset_diff(
        self, featureset: Any, start: int | None = None, end: int | None = None
    ) -> Steps[dict[str, Any]]:
        """Features and extractors that revision ``end`` of a featureset added, removed or changed since ``start``.

        Left out, they are the newest revision and the one before it.
        """
        path = f"/api/v1/featuresets/{named(featureset)}/diff"
        return (yield self.get(path, **{"from": start, "to": end})).read(dict)

    @Operation
    def deprecate(self, featureset: Any, *, reason: str = "", replacement: str = "") -> Steps[dict[str, Any]]:
        """Mark a featureset as one to leave; it is served as before."""
        given = {"reason": reason, "replacement": replacement}
        body = {name: value for name, value in given.items() if value}
        return (yield self.post(f"/api/v1/featuresets/{named(featureset)}/deprecate", body)).read(dict)

    @Operation
    def restore(self, featureset: Any) -> Steps[dict[str, Any]]:
        """Take the mark of a deprecated featureset back."""
        return (yield Request("DELETE", self.api_url(f"/api/v1/featuresets/{named(featureset)}/deprecate"))).read(dict)

    @Operation
    def edit_metadata(
        self,
        kind: str,
        name: Any,
        *,
        description: str | None = None,
        owner: str | None = None,
        tags: Sequence[str] | Mapping[str, str] | None = None,
    ) -> Steps[dict[str, Any]]:
        """Say something else of a ``featureset``, a ``dataset`` or the ``source`` of a dataset than its module does.

        Returns:
            All of its metadata.
        """
        labels = tags if tags is None or isinstance(tags, Mapping) else dict.fromkeys(tags, "")
        given = {"description": description, "owner": owner, "tags": labels}
        body = {member: value for member, value in given.items() if value is not None}
        return (yield Request("PATCH", self.api_url(f"/api/v1/metadata/{named(kind)}/{named(name)}"), body=body)).read(
            dict
        )
