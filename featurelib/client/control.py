"""What runs: jobs, backfills, sources, and the feed of events."""

from __future__ import annotations

from typing import Any

from featurelib.client.frames import instant_text
from featurelib.client.operations import Endpoints, Operation, name_of, named
from featurelib.client.wire import Request, Steps, listed


class Control(Endpoints):
    """Operations on what the platform does."""

    @Operation
    def jobs(self) -> Steps[list[dict[str, Any]]]:
        """The pipelines that run, and how far behind their inputs they are."""
        return (yield self.get("/api/v1/jobs")).read(listed)

    @Operation
    def job(self, job: str) -> Steps[dict[str, Any]]:
        """One pipeline that runs.

        Raises:
            NotFound: there is no such job.
        """
        return (yield self.get(f"/api/v1/jobs/{named(job)}")).read(dict)

    @Operation
    def scale_job(self, job: str, partition_count: int) -> Steps[dict[str, Any]]:
        """Give a pipeline another number of workers, 1 to 64; the job as it is known now.

        Raises:
            NotFound: there is no such job.
            InvalidRequest: the number is out of range, or several versions have the name: ``by_rider@2`` names one.
        """
        url = self.api_url(f"/api/v1/jobs/{named(job)}")
        return (yield Request("PATCH", url, body={"partition_count": partition_count})).read(dict)

    @Operation
    def pause_job(self, job: str) -> Steps[dict[str, Any]]:
        """Let a pipeline rest: its records wait in the log. The job as it is known now."""
        return (yield self.post(f"/api/v1/jobs/{named(job)}/pause", repeatable=True)).read(dict)

    @Operation
    def resume_job(self, job: str) -> Steps[dict[str, Any]]:
        """Let a paused pipeline go on where it was. The job as it is known now."""
        return (yield self.post(f"/api/v1/jobs/{named(job)}/resume", repeatable=True)).read(dict)

    @Operation
    def restart_job(self, job: str) -> Steps[dict[str, Any]]:
        """Replace the workers of a pipeline; they go on where the old ones were. The job as it is known now."""
        return (yield self.post(f"/api/v1/jobs/{named(job)}/restart")).read(dict)

    @Operation
    def start_backfill(self, pipeline: Any, *, since: Any = None, until: Any = None) -> Steps[dict[str, Any]]:
        """Fold the history of a pipeline again, beside what is served; its ``id`` is for :meth:`backfill`.

        Args:
            pipeline: its name; ``by_rider@2`` names a version.
            since: history from this instant on; left out, all that is kept.
            until: history up to this instant.

        Raises:
            NotFound: there is no such pipeline.
            Conflict: it is being folded again already.
        """
        given = {"since": since, "until": until}
        moments = {name: instant_text(value, name) for name, value in given.items() if value is not None}
        return (yield self.post("/api/v1/backfills", {"pipeline": name_of(pipeline), **moments})).read(dict)

    @Operation
    def backfills(self, *, pipeline: Any = None, limit: int = 100) -> Steps[list[dict[str, Any]]]:
        """The backfills that were asked for, newest first; of one pipeline where it is named."""
        name = None if pipeline is None else name_of(pipeline)
        return (yield self.get("/api/v1/backfills", pipeline=name, limit=limit)).read(listed)

    @Operation
    def backfill(self, backfill_id: str) -> Steps[dict[str, Any]]:
        """How far a backfill got.

        Raises:
            NotFound: there is none of that id.
        """
        return (yield self.get(f"/api/v1/backfills/{named(backfill_id)}")).read(dict)

    @Operation
    def cancel_backfill(self, backfill_id: str) -> Steps[dict[str, Any]]:
        """End a backfill; what was served before it stays.

        Raises:
            Conflict: it is over, or can only be finished.
        """
        return (yield self.post(f"/api/v1/backfills/{named(backfill_id)}/cancel", repeatable=True)).read(dict)

    @Operation
    def price_backfill(self, pipeline: Any, *, since: Any = None, until: Any = None) -> Steps[dict[str, Any]]:
        """What :meth:`start_backfill` would read, write and take; nothing is begun.

        Raises:
            NotFound: there is no such pipeline.
        """
        given = {"since": since, "until": until}
        moments = {name: instant_text(value, name) for name, value in given.items() if value is not None}
        body, options = {"pipeline": name_of(pipeline), **moments}, {"dry_run": True}
        return (yield self.post("/api/v1/backfills", body, parameters=options, repeatable=True)).read(dict)

    @Operation
    def roll_back_backfill(self, backfill_id: str) -> Steps[dict[str, Any]]:
        """Serve again what was served before a backfill, as up to date as what is served now.

        Raises:
            Conflict: it is not complete, or what was served before is not kept any more.
        """
        return (yield self.post(f"/api/v1/backfills/{named(backfill_id)}/rollback", repeatable=True)).read(dict)

    @Operation
    def drop_backfill(self, backfill_id: str) -> Steps[dict[str, Any]]:
        """Free the state that a backfill keeps to go back to.

        Raises:
            Conflict: it is not over.
        """
        return (yield self.post(f"/api/v1/backfills/{named(backfill_id)}/drop", repeatable=True)).read(dict)

    @Operation
    def sources(self) -> Steps[list[dict[str, Any]]]:
        """What feeds the datasets, and how far each has got."""
        return (yield self.get("/api/v1/sources")).read(listed)

    @Operation
    def events(
        self,
        *,
        limit: int = 50,
        severity: str | None = None,
        event_type: str | None = None,
        subject: str | None = None,
    ) -> Steps[list[dict[str, Any]]]:
        """Entries of the platform's feed, newest first."""
        request = self.get("/api/v1/events", limit=limit, severity=severity, event_type=event_type, subject=subject)
        return (yield request).read(listed)
