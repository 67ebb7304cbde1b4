"""A mistake, and the line of the user's module it belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from featurelib.definitions import Commit
from featurelib.errors import Problem
from featurelib.inference import Mistake


class Finding(NamedTuple):
    """A mistake, with the key of :attr:`Commit.locations` under which the user's line is found.

    ``about`` is what is missing, as ``Class`` or ``Class.member``, when something is.
    """

    code: str
    key: str
    subject: str
    message: str
    hint: str = ""
    about: str = ""


def of_mistake(mistake: Mistake, key: str, subject: str, what: str = "") -> Finding:
    """The finding for a mistake in an expression or a column's name; ``what`` says where it was read."""
    message = f"{what}: {mistake.message}" if what else mistake.message
    return Finding(mistake.code, key, subject, message, mistake.hint, mistake.about)


def problems(found: Iterable[Finding], commit: Commit) -> list[Problem]:
    """Findings with the user's file and line."""
    placed = []
    for finding in found:
        where = commit.locate(finding.key)
        file, line = (where.file, where.line) if where else (None, None)
        placed.append(Problem(finding.code, finding.subject, finding.message, finding.hint, file, line))
    return in_order(placed)


def in_order(found: Iterable[Problem]) -> list[Problem]:
    """By file and line, those without a place last; each once."""
    return sorted(dict.fromkeys(found), key=lambda p: (p.file is None, p.file or "", p.line or 0))
