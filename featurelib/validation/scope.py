"""The columns in scope at a step of a pipeline, and the mistakes found on the way there."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel

from featurelib.aggregates import LastK
from featurelib.declarations import did_you_mean
from featurelib.definitions import AggregateStep, DatasetDef, Definitions, PipelineDef
from featurelib.inference import UNKNOWN, Columns, Mistake, infer, unknown_column
from featurelib.validation.findings import Finding, of_mistake


@dataclass
class Scope:
    """Walks with a pipeline's steps.

    Attributes:
        of: what the columns belong to, as messages call it: a dataset, or an aggregate.
        types: the columns in scope with their types.
        clock: the left dataset's event time, which an aggregate between steps gives back.
        place: the present step, as ``3``, or ``3.1`` for the second step of what is united in the fourth.
    """

    pipeline: PipelineDef
    world: Definitions
    of: str
    types: dict[str, str]
    clock: str
    place: str = ""
    found: list[Finding] = field(default_factory=list)

    def add(self, code: str, message: str, hint: str = "", about: str = "", *, member: str | None = None) -> None:
        """Note a mistake at the present step, or at one of its members."""
        place = self.place if member is None else f"{self.place}.{member}"
        self.found.append(Finding(code, self._key(place), self._subject, message, hint, about))

    def add_mistake(self, mistake: Mistake, what: str, member: str | None = None) -> None:
        """Note what is wrong with an expression or a column's name, which ``what`` reads."""
        place = self.place if member is None else f"{self.place}.{member}"
        self.found.append(of_mistake(mistake, self._key(place), self._subject, what))

    def column(self, name: str, what: str, member: str | None = None) -> str:
        """The type of a column; one that is not there is a mistake."""
        if name in self.types:
            return self.types[name]
        self.add_mistake(unknown_column(name, Columns(self.of, self.types)), what, member)
        return UNKNOWN

    def expression(self, node: BaseModel, what: str, member: str | None = None) -> str:
        """The type an expression gives."""
        mistakes: list[Mistake] = []
        found = infer(node, Columns(self.of, self.types), mistakes)
        for mistake in mistakes:
            self.add_mistake(mistake, what, member)
        return found

    def condition(self, node: BaseModel, what: str, member: str | None = None) -> None:
        """An expression that has to be true or false."""
        found = self.expression(node, what, member)
        if found not in {"bool", UNKNOWN}:
            text = f"{what} takes a condition; found {found}"
            self.add("type_mismatch", text, "Compare it with something.", member=member)

    def dataset(self, name: str) -> DatasetDef | None:
        """The dataset a step reads; one that is not there is a mistake."""
        dataset = self.world.dataset(name)
        if dataset is None:
            hint = did_you_mean(name, [d.name for d in self.world.datasets], "The commit")
            self.add("unknown_dataset", f"there is no dataset `{name}`", hint, name)
        return dataset

    @property
    def _subject(self) -> str:
        return f"{self.pipeline.output_dataset}.{self.pipeline.name}"

    def _key(self, place: str) -> str:
        return f"pipeline:{self.pipeline.name}" + (f".{place}" if place else "")


def dataset_columns(dataset: DatasetDef, world: Definitions) -> dict[str, str]:
    """The types of a dataset's columns as another pipeline reads them."""
    types = {column.name: column.type for column in dataset.fields}
    producer = world.producer(dataset.name)
    last = producer.steps[-1] if producer and producer.steps else None
    for named in last.aggregates if isinstance(last, AggregateStep) else ():
        # The stock SDK has no list types and declares the list of LastK as text.
        if isinstance(named.aggregate, LastK) and types.get(named.output) == "str":
            types[named.output] = UNKNOWN
    return types
