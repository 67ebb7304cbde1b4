"""What the monitor found: whether what is served is true, and what it is like, day by day."""

from __future__ import annotations

from typing import Any

from featurelib.client.frames import instant_text
from featurelib.client.operations import Endpoints, Operation, name_of, named
from featurelib.client.wire import Steps


class Monitoring(Endpoints):
    """Operations that look at the values themselves."""

    @Operation
    def consistency(self, target: Any = None, *, hours: int = 24) -> Steps[dict[str, Any]]:
        """How often values that were served differed from what the records say, per feature, with the causes.

        Args:
            target: only this featureset or dataset.
            hours: how far back.
        """
        only = None if target is None else name_of(target)
        return (yield self.get("/api/v1/consistency", target=only, hours=hours)).read(dict)

    @Operation
    def statistics(
        self,
        featureset: Any,
        feature: str | None = None,
        *,
        since: Any = None,
        until: Any = None,
        reference_since: Any = None,
        reference_until: Any = None,
    ) -> Steps[dict[str, Any]]:
        """What the features of a featureset were like on each of some days, and how far they drifted.

        Args:
            featureset: its class or name.
            feature: only this one.
            since: the first day; left out, six days before the last one.
            until: the last day; left out, today.
            reference_since: the first day that drift is measured against; left out, the days before each day.
            reference_until: the last one of these.

        Raises:
            NotFound: it is not committed, or has no such feature.
        """
        days = _days(since=since, until=until, reference_since=reference_since, reference_until=reference_until)
        path = f"/api/v1/featuresets/{named(featureset)}/statistics"
        return (yield self.get(path, feature=feature, **days)).read(dict)

    @Operation
    def dataset_statistics(
        self,
        dataset: Any,
        column: str | None = None,
        *,
        version: int | None = None,
        since: Any = None,
        until: Any = None,
        reference_since: Any = None,
        reference_until: Any = None,
    ) -> Steps[dict[str, Any]]:
        """:meth:`statistics` of the columns of a dataset, its newest version unless one is named."""
        days = _days(since=since, until=until, reference_since=reference_since, reference_until=reference_until)
        path = f"/api/v1/datasets/{named(dataset)}/statistics"
        return (yield self.get(path, column=column, version=version, **days)).read(dict)


def _days(**given: Any) -> dict[str, str]:
    return {name: instant_text(value, name) for name, value in given.items() if value is not None}
