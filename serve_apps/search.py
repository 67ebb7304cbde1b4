"""Search of the catalogue: which definitions a question means, best first, and what they have in common.

Pure functions over entries held in memory: a catalogue is as large as what people wrote by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from featurelib.metadata import Metadata

Kind = Literal["featureset", "dataset", "pipeline", "source"]
Json = dict[str, Any]

_EXACT, _PREFIX, _WITHIN = 100, 60, 40
_MEMBER, _LABEL, _PROSE = 20, 10, 5


class Entry(NamedTuple):
    """A definition as it is searched.

    ``members`` are names within it: features, columns, inputs. ``record`` makes what is answered, for hits alone.
    """

    kind: Kind
    name: str
    members: tuple[str, ...]
    metadata: Metadata
    record: Callable[[], Json]


class Question(NamedTuple):
    """What is looked for; what is empty restricts nothing."""

    words: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    owners: frozenset[str] = frozenset()
    project: str | None = None


class Facet(NamedTuple):
    """A label, and how many definitions have it."""

    label: str
    definitions: int


def found(entries: Iterable[Entry], question: Question) -> list[Entry]:
    """The entries a question means: best first, then by name."""
    ranked = ((_rank(entry, question.words), entry) for entry in entries if _fits(entry, question))
    return [entry for rank, entry in sorted(ranked, key=lambda each: (-each[0], each[1].name)) if rank]


def tag_facets(entries: Iterable[Entry]) -> list[Facet]:
    """Tags, the most used first: ``key``, or ``key:value`` where the tag has a value."""
    return _facets(tag for entry in entries for tag in labels(entry.metadata))


def owner_facets(entries: Iterable[Entry]) -> list[Facet]:
    """Owners, the one of most definitions first."""
    return _facets(entry.metadata.owner for entry in entries)


def project_facets(entries: Iterable[Entry]) -> list[Facet]:
    """Projects, the largest first."""
    return _facets(entry.metadata.project for entry in entries)


def labels(metadata: Metadata) -> list[str]:
    """The tags as one text each; such a text, given as a filter, finds the definition."""
    return [f"{key}:{value}" if value else key for key, value in metadata.tags.items()]


def _facets(names: Iterable[str | None]) -> list[Facet]:
    counts = Counter(name for name in names if name)
    return [Facet(name, count) for name, count in sorted(counts.items(), key=lambda each: (-each[1], each[0]))]


def _fits(entry: Entry, question: Question) -> bool:
    metadata = entry.metadata
    return (
        (not question.kinds or entry.kind in question.kinds)
        and question.tags <= {*metadata.tags, *labels(metadata)}
        and (not question.owners or metadata.owner in question.owners)
        and question.project in {None, metadata.project}
    )


def _rank(entry: Entry, words: Sequence[str]) -> int:
    """How well an entry fits; 0 when a word is nowhere in it."""
    if not words:
        return 1
    # Folded once for all words, each of which counts once: a question of 1,000 characters may have 500.
    name, texts = entry.name.casefold(), [(rank, text.casefold()) for rank, text in _texts(entry)]
    total = 0
    for word in dict.fromkeys(word.casefold() for word in words):
        rank = _rank_of_name(word, name) or next((rank for rank, text in texts if word in text), 0)
        if not rank:
            return 0
        total += rank
    return total


def _rank_of_name(word: str, name: str) -> int:
    if word not in name:
        return 0
    return _EXACT if name == word else _PREFIX if name.startswith(word) else _WITHIN


def _texts(entry: Entry) -> Iterator[tuple[int, str]]:
    """What else is looked through, the best first."""
    metadata = entry.metadata
    yield from ((_MEMBER, member) for member in entry.members)
    yield from ((_LABEL, label) for label in (*labels(metadata), metadata.owner or "", metadata.project or ""))
    yield _PROSE, metadata.description or ""
