"""Thyme on Ray: declare sources, datasets, pipelines and featuresets; serve the same number everywhere."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurelib.aggregates import Avg, Count, Last, LastK, Max, Min, Sum
from featurelib.datasets import Field, dataset, field
from featurelib.expectations import (
    expect_column_values_to_be_between,
    expect_column_values_to_be_in_set,
    expect_column_values_to_be_of_type,
    expect_column_values_to_not_be_null,
    expectations,
)
from featurelib.expr import col, lit
from featurelib.featuresets import extractor, extractor_inputs, extractor_outputs, feature, featureset
from featurelib.pipelines import ApproxPercentile, Backfill, PipelineNode, inputs, pipeline
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
    source,
)

if TYPE_CHECKING:
    from featurelib.client import Config, ThymeClient
    from featurelib.result import ThymeResult

__version__ = "0.1.0"

__all__ = [
    "ApproxPercentile",
    "Avg",
    "Backfill",
    "BigQuerySource",
    "Config",
    "Count",
    "Field",
    "FileSource",
    "IcebergSource",
    "KafkaSource",
    "KinesisSource",
    "Last",
    "LastK",
    "Max",
    "Min",
    "PipelineNode",
    "PostgresSource",
    "S3JsonSource",
    "Secret",
    "SnowflakeSource",
    "Sum",
    "ThymeClient",
    "ThymeResult",
    "col",
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
    "inputs",
    "lit",
    "pipeline",
    "source",
]

# The HTTP client costs as much to import as all declarations together, and a feature module never needs it.
_DEFERRED = {"Config": "featurelib.client", "ThymeClient": "featurelib.client", "ThymeResult": "featurelib.result"}


def __getattr__(name: str) -> Any:
    if name not in _DEFERRED:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_DEFERRED[name]), name)
