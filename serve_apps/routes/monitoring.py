"""`/api/v1/consistency` and `…/statistics`: whether what is served is true, and what it is like, day by day."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict

from featurelib.clock import Instant, parse_instant
from serve_apps.monitoring import Monitoring, Span
from serve_apps.routes.access import ServicesOf
from serve_apps.routes.catalogue import DatasetName, Name, Version

router = APIRouter(prefix="/api/v1", tags=["monitoring"])

Json = dict[str, Any]
_Day = Annotated[
    str | None, Query(max_length=40, description="A day, or an instant within it.", examples=["2026-03-01"])
]
_RUN = "5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11"


class DifferingEntity(BaseModel):
    """An entity whose value was served differently."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    entity_id: str | None
    """Null where the run is not kept any more, or read many entities and it is not known which of them it was."""
    query_run: str
    """A run that read it: it can be replayed."""
    times: int
    """How often, among the runs compared."""


class FeatureConsistency(BaseModel):
    """How often a feature's served value was not the true one."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Literal["dataset", "featureset"]
    """What was read; datasets are looked up."""
    target: str
    """Its name."""
    feature: str
    """Of the featureset; of a dataset the column."""
    compared: int
    """Values compared; of a batch the values of all its entities are one."""
    different: int
    """How many of them were different."""
    rate: float
    """Their share."""
    causes: dict[str, int]
    """How many by cause: `late_record`, `not_applied`, `backfill`, `version_change`, `erasure`, `unknown`."""
    worst: list[DifferingEntity]
    """Those that differed most often, at most ten."""


class Consistency(BaseModel):
    """What the monitor found, the features with unexplained differences first, then by rate."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "example": {
                "since": "2026-03-01T11:00:00Z",
                "checked_until": "2026-03-02T11:59:30Z",
                "features": [
                    {
                        "kind": "featureset",
                        "target": "Rider",
                        "feature": "trips",
                        "compared": 4_200,
                        "different": 3,
                        "rate": 0.0007,
                        "causes": {"late_record": 3},
                        "worst": [{"entity_id": "7", "query_run": _RUN, "times": 2}],
                    }
                ],
            }
        },
    )

    since: str
    """The beginning of the first hour that is counted."""
    checked_until: str | None
    """Runs up to this instant have had their turn; null: the monitor has not begun."""
    features: list[FeatureConsistency]
    """Every feature of which a value was compared."""


class Bins(BaseModel):
    """A histogram with bins of one width."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    edges: list[float]
    """One more than bins; the last bin holds its upper end too."""
    counts: list[int]
    """Values per bin."""


class TextCount(BaseModel):
    """A frequent text."""

    value: str
    rows: int


class ColumnDrift(BaseModel):
    """How far a day is from the reference."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    psi: float
    """Population stability index: 0.1 is small, from 0.25 on people look."""
    js: float
    """Jensen-Shannon divergence in bits, 0 to 1."""
    reference_rows: int
    """Values of the reference."""


class DayOfColumn(BaseModel):
    """What the values of a column are like on one day."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    day: str
    """UTC."""
    complete: bool
    """Whether the day was over when this was made."""
    made_at: str
    """When this was made."""
    rows: int
    """Values, nulls included."""
    nulls: int
    """How many of them are null."""
    null_rate: float
    """Their share."""
    distinct: int | None
    """Different values, null aside; null for lists."""
    numbers: int
    """Finite numbers; of a list its length is the number. The members from `mean` to `histogram` are of them."""
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    quantiles: dict[str, float]
    """By share: `0.5` is the median."""
    histogram: Bins | None
    """Null where there is no number."""
    texts: list[TextCount]
    """The most frequent texts that at least ten rows have, at most 50."""
    drift: ColumnDrift | None
    """Null where the reference has no values."""


class ColumnOfDays(BaseModel):
    """A column, day by day."""

    name: str
    days: list[DayOfColumn]


class Reference(BaseModel):
    """What drift is measured against: the days before each day, or days that were asked for."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    days_before: int | None
    """How many days before each day; null where days were asked for."""
    since: str | None
    """The first day that was asked for."""
    until: str | None
    """The last one."""


class StatisticsAnswer(BaseModel):
    """Statistics of days, oldest first."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Literal["dataset", "featureset"]
    """What they are of."""
    name: str
    """A featureset's name, or a dataset as `Name@version`."""
    since: str
    """The first day."""
    until: str
    """The last day."""
    reference: Reference
    """What drift is measured against."""
    columns: list[ColumnOfDays]
    """Those with statistics, in declared order."""
    without: list[str]
    """Those without: nothing came in, only a request brings them, or they are computed and an extractor fails or needs
    what only a request brings."""


def _monitoring(services: ServicesOf) -> Monitoring:
    return Monitoring(services.stores.registry, services.settings.monitor, services.clock)


MonitoringOf = Annotated[Monitoring, Depends(_monitoring)]


def _span(since: _Day = None, until: _Day = None) -> Span:
    return Span(_instant(since, "since"), _instant(until, "until"))


def _reference(reference_since: _Day = None, reference_until: _Day = None) -> Span:
    return Span(_instant(reference_since, "reference_since"), _instant(reference_until, "reference_until"))


def _instant(given: str | None, field: str) -> Instant | None:
    return None if given is None else parse_instant(given, field)


SpanOf = Annotated[Span, Depends(_span)]
ReferenceOf = Annotated[Span, Depends(_reference)]
_Only = Annotated[str | None, Query(max_length=128, description="Only this one.", examples=["trips"])]


@router.get("/consistency", response_model=Consistency)
def consistency(
    monitoring: MonitoringOf,
    target: Annotated[
        str | None,
        Query(
            max_length=128, pattern=r"^[^\x00]*$", description="Only this featureset or dataset.", examples=["Rider"]
        ),
    ] = None,
    hours: Annotated[int, Query(ge=1, le=14 * 24, description="How far back; whole hours.")] = 24,
) -> Json:
    """Whether what was served is what the records say: a sample of the query runs, read again as of their instants."""
    return monitoring.consistency(target, hours)


@router.get("/featuresets/{name}/statistics", response_model=StatisticsAnswer)
def featureset_statistics(
    name: Name, monitoring: MonitoringOf, span: SpanOf, reference: ReferenceOf, feature: _Only = None
) -> Json:
    """What the features were like on each of some days, by default the last seven, and how far they drifted.

    A day's values are those that each entity had right after its last record of the day.
    """
    return monitoring.featureset(name, span, reference, feature)


@router.get("/datasets/{name}/statistics", response_model=StatisticsAnswer)
def dataset_statistics(
    name: DatasetName,
    monitoring: MonitoringOf,
    span: SpanOf,
    reference: ReferenceOf,
    *,
    version: Version = None,
    column: _Only = None,
) -> Json:
    """What the columns of the records dated within each of some days were like, and how far they drifted.

    Of datasets that records are appended to; one that a pipeline fills has none.
    """
    return monitoring.dataset(name, version, span, reference, column)
