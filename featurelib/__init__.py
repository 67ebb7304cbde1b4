"""Thyme on Ray: declare sources, datasets, pipelines and featuresets; serve the same number everywhere."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurelib.aggregates import (
    ApproxDistinct,
    ApproxPercentile,
    Avg,
    Count,
    Distinct,
    ExpDecaySum,
    First,
    FirstK,
    Last,
    LastK,
    Max,
    Min,
    Quantile,
    Stddev,
    Sum,
    TopK,
    Variance,
)
from featurelib.datasets import Field, dataset, field
from featurelib.expectations import (
    expect_column_values_to_be_between,
    expect_column_values_to_be_in_set,
    expect_column_values_to_be_of_type,
    expect_column_values_to_not_be_null,
    expectations,
)
from featurelib.expr import coalesce, col, concat, greatest, least, lit, when
from featurelib.feature_services import FeatureService, Slice, Wildcard
from featurelib.featuresets import extractor, extractor_inputs, extractor_outputs, feature, featureset
from featurelib.pipelines import Backfill, PipelineNode, inputs, pipeline
from featurelib.secrets import Secret
from featurelib.sources import (
    BigQuerySource,
    FileSource,
    IcebergSource,
    KafkaSource,
    KinesisSource,
    PostgresSource,
    S3JsonSource,
    SnowflakeSource,
    WebhookSource,
    source,
)
from featurelib.windows import Continuous, Hopping, Lifetime, Session, Tumbling

if TYPE_CHECKING:
    from featurelib.client import AsyncThymeClient, Config, ThymeClient
    from featurelib.compile import (
        clear_registry,
        get_commit_payload,
        get_registered_datasets,
        get_registered_pipelines,
        serialize_definitions,
    )
    from featurelib.result import ThymeResult

__version__ = "0.1.0"

__all__ = [
    "ApproxDistinct",
    "ApproxPercentile",
    "AsyncThymeClient",
    "Avg",
    "Backfill",
    "BigQuerySource",
    "Config",
    "Continuous",
    "Count",
    "Distinct",
    "ExpDecaySum",
    "FeatureService",
    "Field",
    "FileSource",
    "First",
    "FirstK",
    "Hopping",
    "IcebergSource",
    "KafkaSource",
    "KinesisSource",
    "Last",
    "LastK",
    "Lifetime",
    "Max",
    "Min",
    "PipelineNode",
    "PostgresSource",
    "Quantile",
    "S3JsonSource",
    "Secret",
    "Session",
    "Slice",
    "SnowflakeSource",
    "Stddev",
    "Sum",
    "ThymeClient",
    "ThymeResult",
    "TopK",
    "Tumbling",
    "Variance",
    "WebhookSource",
    "Wildcard",
    "clear_registry",
    "coalesce",
    "col",
    "concat",
    "dataset",
    "expect_column_values_to_be_between",
    "expect_column_values_to_be_in_set",
    "expect_column_values_to_be_of_type",
    "expect_column_values_to_not_be_null",
    "expectations",
    "extractor",
    "extractor_inputs",
    "extractor_outputs",
    "feature",
    "featureset",
    "field",
    "get_commit_payload",
    "get_registered_datasets",
    "get_registered_pipelines",
    "greatest",
    "inputs",
    "least",
    "lit",
    "pipeline",
    "serialize_definitions",
    "source",
    "when",
]

# The HTTP client costs as much to import as all declarations together, and a feature module needs neither it nor the
# rules that a commit is checked against.
_DEFERRED = {
    "AsyncThymeClient": "featurelib.client",
    "Config": "featurelib.client",
    "ThymeClient": "featurelib.client",
    "ThymeResult": "featurelib.result",
    "clear_registry": "featurelib.compile",
    "get_commit_payload": "featurelib.compile",
    "get_registered_datasets": "featurelib.compile",
    "get_registered_pipelines": "featurelib.compile",
    "serialize_definitions": "featurelib.compile",
}


def __getattr__(name: str) -> Any:
    if name not in _DEFERRED:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_DEFERRED[name]), name)
