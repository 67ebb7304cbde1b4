"""What a commit must satisfy, checked against everything that is already committed.

Pure: the SDK runs it before sending, the service runs it again on what arrives. Every mistake is a
:class:`Finding`; none stops the search for others. One module per kind of definition, and
:mod:`~featurelib.validation.commits` for what concerns several.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from featurelib.definitions import Commit, Definitions
from featurelib.errors import Problem
from featurelib.validation.commits import (
    check_commit,
    definition_key,
    merged,
    touched_feature_services,
    touched_featuresets,
    touched_pipelines,
)
from featurelib.validation.datasets import check_dataset
from featurelib.validation.feature_services import check_feature_service
from featurelib.validation.featuresets import check_featureset
from featurelib.validation.findings import Finding, in_order, problems
from featurelib.validation.pipelines import check_pipeline
from featurelib.validation.sources import check_source
from featurelib.validation.undeclared import completed

__all__ = [
    "SUPPORTED_CONNECTORS",
    "Finding",
    "completed",
    "definition_key",
    "findings",
    "in_order",
    "merged",
    "problems",
    "validate",
]

SUPPORTED_CONNECTORS: frozenset[str] = frozenset(
    {"bigquery", "files", "iceberg", "kafka", "kinesis", "postgres", "s3_json", "snowflake", "webhook"}
)
"""Connector types this platform can read."""


def validate(commit: Commit, context: Definitions, connectors: Collection[str] = SUPPORTED_CONNECTORS) -> list[Problem]:
    """Every mistake of a commit.

    Args:
        commit: the definitions that arrive.
        context: what is committed already; the commit may refer to it.
        connectors: connector types the platform can read.

    Returns:
        The problems, in the order of the user's lines where they are known.
    """
    return problems(findings(commit, context, connectors), commit)


def findings(commit: Commit, context: Definitions, connectors: Collection[str]) -> Iterator[Finding]:
    """Every mistake, place unknown."""
    world = merged(context, commit)
    yield from check_commit(commit, context, world)
    for source in commit.sources:
        yield from check_source(source, world, connectors)
    for dataset in commit.datasets:
        yield from check_dataset(dataset, world)
    for pipeline in [*commit.pipelines, *touched_pipelines(commit, context)]:
        yield from check_pipeline(pipeline, world)
    for featureset in [*commit.featuresets, *touched_featuresets(commit, context)]:
        yield from check_featureset(featureset, world)
    for service in [*commit.feature_services, *touched_feature_services(commit, context)]:
        yield from check_feature_service(service, world)
