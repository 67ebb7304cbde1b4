"""Definitions: sent, planned, and what of them is committed and runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featurelib.client.config import base_of
from featurelib.client.operations import Endpoints, Operation, name_of, named
from featurelib.client.wire import Request, Steps, listed
from featurelib.definitions import Commit
from featurelib.errors import ThymeError
from featurelib.plan import CommitReceipt


class Definitions(Endpoints):
    """Operations on what is committed."""

    @Operation
    def commit(
        self, commit: Commit, *, allow_retention_narrowing: bool | None = None, backfill: bool | None = None
    ) -> Steps[CommitReceipt]:
        """Send definitions.

        Args:
            commit: them.
            allow_retention_narrowing: let datasets keep records for a shorter time than they do.
            backfill: ``False``: start no backfill, whatever the pipelines say.

        Raises:
            DefinitionError: they are wrong; every problem is listed and nothing was committed.
            BreakingChange: an existing ``(name, version)`` would change its meaning.
        """
        body = _body(commit, allow_retention_narrowing, backfill)
        # Equal content is an equal commit: sent twice, the second one changes nothing.
        answer = yield Request("POST", self.config.api_url, body=body)
        return answer.read(CommitReceipt.model_validate)

    @Operation
    def plan(
        self,
        commit: Commit,
        *,
        allow_retention_narrowing: bool | None = None,
        backfill: bool | None = None,
        assumed: Mapping[str, Any] | None = None,
    ) -> Steps[dict[str, Any]]:
        """What a commit would do: changes, steps, breaks, predicted bytes, warnings. Nothing is stored.

        Args:
            commit: the definitions.
            allow_retention_narrowing: as for :meth:`commit`.
            backfill: as for :meth:`commit`.
            assumed: what the prediction assumes: ``keys``, ``events_per_key``, ``over``, ``distinct``.

        Raises:
            DefinitionError: the definitions are wrong.
        """
        body = _body(commit, allow_retention_narrowing, backfill)
        answer = yield self.post("/api/v1/plan", body, parameters=dict(assumed or {}), repeatable=True)
        return answer.read(dict)

    @Operation
    def commits(self, *, limit: int = 100) -> Steps[list[dict[str, Any]]]:
        """The latest commits that changed something, newest first."""
        return (yield self.get("/api/v1/commits", limit=limit)).read(listed)

    @Operation
    def commit_diff(self, commit_id: str) -> Steps[dict[str, Any]]:
        """What a commit changed, member by member.

        Raises:
            NotFound: there is no such commit.
        """
        return (yield self.get(f"/api/v1/commits/{named(commit_id)}/diff")).read(dict)

    @Operation
    def status(self) -> Steps[dict[str, Any]]:
        """What is committed and how it runs."""
        return (yield self.get("/api/v1/status")).read(dict)

    @Operation
    def inspect(self, featureset: Any = None) -> Steps[dict[str, Any]]:
        """One featureset of the status, or the whole status.

        Raises:
            ValueError: there is no such featureset.
        """
        status = (yield self.get("/api/v1/status")).read(dict)
        if featureset is None:
            return status
        name = name_of(featureset)
        for entry in status.get("featuresets", []):
            if entry.get("name") == name:
                return dict(entry)
        message = f"there is no featureset {name!r}"
        raise ValueError(message)

    @Operation
    def featuresets(self) -> Steps[list[dict[str, Any]]]:
        """Every committed featureset with its features and extractors."""
        return (yield self.get("/api/v1/featuresets")).read(listed)

    @Operation
    def feature_services(self) -> Steps[list[dict[str, Any]]]:
        """Every feature service of the workspaces that the key may read, with what it takes and gives."""
        return (yield self.get("/api/v1/feature-services")).read(listed)

    @Operation
    def names(self, path: str) -> Steps[list[str]]:
        """The names in a list of the definition service, such as ``/api/v1/datasets``."""
        return (yield self.get(path)).read(lambda tree: [str(each["name"]) for each in tree])

    @Operation
    def is_up(self, base: str) -> Steps[bool]:
        """Whether a service answers on its health path, now: it is asked once."""
        try:
            # Something else on that port may answer the path too, with a page of its own.
            answer = yield Request("GET", f"{base_of(base)}/health", once=True)
            return bool(answer.read(lambda tree: tree["status"]))
        except ThymeError:
            return False


def _body(commit: Commit, allow_retention_narrowing: bool | None, backfill: bool | None) -> bytes:
    options = {"allow_retention_narrowing": allow_retention_narrowing, "backfill": backfill}
    given = {name: value for name, value in options.items() if value is not None}
    return commit.model_copy(update=given).model_dump_json().encode()
