"""What concerns several definitions of a commit at once: names, circles, and versions that others depend on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TypeVar

from featurelib.definitions import (
    Commit,
    Definition,
    Definitions,
    FeatureServiceDef,
    FeaturesetDef,
    PipelineDef,
    SourceDef,
    ref,
)
from featurelib.lineage import dataset_cycle, feature_cycle
from featurelib.validation.findings import Finding

_D = TypeVar("_D", bound=Definition)


def merged(context: Definitions, commit: Definitions) -> Definitions:
    """What will be committed: the context with the commit laid over it, by name and version."""
    return Definitions(
        datasets=_laid_over(context.datasets, commit.datasets),
        pipelines=_laid_over(context.pipelines, commit.pipelines),
        featuresets=_laid_over(context.featuresets, commit.featuresets),
        sources=_laid_over(context.sources, commit.sources),
        feature_services=_laid_over(context.feature_services, commit.feature_services),
    )


def definition_key(definition: Definition) -> str:
    """``kind:Name@version``; ``kind:Name`` where there are no versions."""
    if isinstance(definition, SourceDef):
        return f"source:{definition.dataset}"
    if isinstance(definition, FeaturesetDef):
        return f"featureset:{definition.name}"
    if isinstance(definition, FeatureServiceDef):
        return f"feature_service:{definition.qualified_name}@{definition.version}"
    return f"{definition.kind}:{ref(definition)}"


def check_commit(commit: Commit, context: Definitions, world: Definitions) -> Iterator[Finding]:
    """Names given twice, circles, and new versions of what committed pipelines read.

    Args:
        commit: the definitions that arrive.
        context: what is committed already.
        world: both, merged.
    """
    yield from _duplicates(commit)
    yield from _cycles(commit, world)
    yield from _datasets_in_use(commit, context)
    yield from _pipelines_in_use(commit, context)


def touched_pipelines(commit: Commit, context: Definitions) -> Iterator[PipelineDef]:
    """Newest committed pipelines that the commit leaves out and whose datasets, or what fills them, it changes."""
    changed = {d.name for d in commit.datasets} | {p.output_dataset for p in commit.pipelines}
    sent = {p.name for p in commit.pipelines}
    for pipeline in context.pipelines:
        newest = context.pipeline(pipeline.name) is pipeline
        if newest and pipeline.name not in sent and changed & {*pipeline.input_datasets, pipeline.output_dataset}:
            yield pipeline


def touched_featuresets(commit: Commit, context: Definitions) -> Iterator[FeaturesetDef]:
    """Committed featuresets that the commit leaves out and that read what it changes."""
    changed = {d.name for d in commit.datasets}
    changed_sets, sent = {f.name for f in commit.featuresets}, {f.name for f in commit.featuresets}
    for featureset in context.featuresets:
        used = {feature.lookup.dataset for feature in featureset.features if feature.lookup}
        others = {name.split(".")[0] for e in featureset.extractors for name in e.inputs if "." in name}
        if featureset.name not in sent and (changed & used or changed_sets & others):
            yield featureset


def touched_feature_services(commit: Commit, context: Definitions) -> Iterator[FeatureServiceDef]:
    """Committed feature services that the commit leaves out and whose featuresets it changes."""
    changed, sent = {f.name for f in commit.featuresets}, {definition_key(s) for s in commit.feature_services}
    for service in context.feature_services:
        used = {view.featureset for view in service.views}
        if service.wildcard is not None:
            used.add(service.wildcard.featureset)
        if definition_key(service) not in sent and changed & used:
            yield service


def _laid_over(below: tuple[_D, ...], above: tuple[_D, ...]) -> tuple[_D, ...]:
    kept = {definition_key(each): each for each in below}
    kept.update({definition_key(each): each for each in above})
    return tuple(kept.values())


def _duplicates(commit: Commit) -> Iterator[Finding]:
    for key, count in Counter(definition_key(definition) for definition in commit.all).items():
        if count > 1:
            kind, name = key.split("@", maxsplit=1)[0].split(":")
            text = f"the commit holds the {kind} `{key.split(':')[1]}` {count} times"
            yield Finding("duplicate_name", f"{kind}:{name}", name, text, "Rename one, or give it another version.")


def _cycles(commit: Commit, world: Definitions) -> Iterator[Finding]:
    circle = dataset_cycle(world)
    if circle:
        pipeline = next(node for node in circle if node.startswith("pipeline:"))
        path = " → ".join(node.split(":")[1] for node in reversed(circle))
        yield Finding("cycle", pipeline, pipeline.split(":")[1], f"data runs in a circle: {path}", "Cut it somewhere.")
    around = feature_cycle(world.featuresets)
    if around:
        owner, feature = around[0].split(".")
        maker = next(
            (e.name for f in commit.featuresets if f.name == owner for e in f.extractors if feature in e.outputs),
            feature,
        )
        text = f"features are computed from themselves: {' → '.join(reversed(around))}"
        yield Finding("cycle", f"featureset:{owner}.{maker}", f"{owner}.{maker}", text, "Cut it somewhere.")


def _datasets_in_use(commit: Commit, context: Definitions) -> Iterator[Finding]:
    """New versions of datasets that committed pipelines read: those pipelines would change logs under way."""
    for dataset in commit.datasets:
        held = context.dataset(dataset.name)
        if held is None or held.version == dataset.version:
            continue
        for pipeline in context.pipelines:
            if dataset.name in pipeline.input_datasets:
                text = (
                    f"version {dataset.version} of `{dataset.name}`: the pipeline `{pipeline.name}` reads {ref(held)}"
                )
                hint = "A running pipeline cannot change its input yet: give the new dataset a name of its own."
                yield Finding("dataset_version_in_use", f"dataset:{dataset.name}", dataset.name, text, hint)


def _pipelines_in_use(commit: Commit, context: Definitions) -> Iterator[Finding]:
    """New pipelines whose output committed ones read: their meaning would change without a version of theirs."""
    committed = {ref(pipeline) for pipeline in context.pipelines}
    renewed = {pipeline.name for pipeline in commit.pipelines if ref(pipeline) not in committed}
    for pipeline in commit.pipelines:
        if ref(pipeline) in committed:
            continue
        for reader in context.pipelines:
            newest = context.pipeline(reader.name) is reader
            if newest and pipeline.output_dataset in reader.input_datasets and reader.name not in renewed:
                text = f"{ref(pipeline)} fills `{pipeline.output_dataset}`, which {ref(reader)} reads as it was"
                hint = f"Commit a new version of `{reader.name}` with it, or fill a dataset of another name."
                subject = f"{pipeline.output_dataset}.{pipeline.name}"
                yield Finding("pipeline_version_in_use", f"pipeline:{pipeline.name}", subject, text, hint)
