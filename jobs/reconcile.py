"""What to do about the difference between the tasks that should run and the actors that are there.

A pure function of what is wanted, what was seen, and the time. Leases are for liveness only: an actor that does not
answer is given up so that the work goes on. That it can no longer write is the epoch's doing (stores/online.py),
whether or not it is really gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jobs.driver import Report
from jobs.wanted import TaskSpec

# A new process loads for seconds, and many of them at once on a busy machine for longer.
_FIRST_ANSWER_S = 120.0
# Nobody looks round less often than this unless it was itself stopped or starved.
_ABSENT_AFTER_S = 5.0


class Limits(NamedTuple):
    """How long, in seconds, an actor may give no answer, take for one step, and take to end when it is asked to."""

    lease_s: float
    step_s: float
    drain_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """An actor that is there, as far as is known. Times are seconds of a clock that only moves forward."""

    name: str
    heard: float
    """When it answered last; when it was made or found, if it never did."""
    report: Report | None = None
    ending_since: float | None = None
    """Since when it has been asked to end."""


class Start(NamedTuple):
    """Make an actor."""

    spec: TaskSpec


class Drain(NamedTuple):
    """Ask an actor to end after its current step."""

    name: str
    why: str


class End(NamedTuple):
    """End an actor and its process. ``outcome``: whether it is a failure that people should hear of as one."""

    name: str
    why: str
    outcome: Literal["stopped", "failed"]


Action = Start | Drain | End


def decide(
    wanted: Mapping[str, TaskSpec],
    seen: Collection[Seen],
    now: float,
    limits: Limits,
    paused: Collection[str] = (),
) -> list[Action]:
    """What to do now; doing it again and again makes what runs what is wanted.

    ``paused``: names of tasks that are not wanted only because people had them stand still.

    Nothing of a pipeline is started while one of its workers is being asked to end: workers of two partition counts
    own the same key groups, and would fence one another in the middle of a step.
    """
    actions = [_in_words(action, paused) for action in _endings(wanted, seen, now, limits)]
    gone = {action.name for action in actions if isinstance(action, End)}
    asked = {action.name for action in actions if isinstance(action, Drain)}
    asked |= {actor.name for actor in seen if actor.ending_since is not None}
    there = {actor.name for actor in seen} - gone
    held = {family(name) for name in asked & there}
    starts = [Start(spec) for name, spec in wanted.items() if name not in there and family(name) not in held]
    return [*actions, *starts]


def family(name: str) -> str:
    """What the actors of one pipeline have in common; any other task is alone."""
    title, _, partition = name.rpartition(":")
    return title if partition.isdigit() else name


def caught_up(seen: Seen, lost_s: float) -> Seen:
    """The actor with its times moved on by what the observer itself was away for: nobody could have answered it."""
    since = seen.ending_since
    return Seen(seen.name, seen.heard + lost_s, seen.report, since if since is None else since + lost_s)


def absence(before: float, now: float) -> float:
    """How long the observer was itself stopped or starved, in seconds, between two looks; 0 when it was not."""
    return now - before if now - before > _ABSENT_AFTER_S else 0.0


def _endings(wanted: Mapping[str, TaskSpec], seen: Collection[Seen], now: float, limits: Limits) -> Iterator[Action]:
    for actor in seen:
        spec = wanted.get(actor.name)
        action = _ended(actor, spec, now, limits) or _asked_to_end(spec, actor)
        if action is not None:
            yield action


def _in_words(action: Action, paused: Collection[str]) -> Action:
    return action._replace(why="paused") if isinstance(action, Drain) and action.name in paused else action


def _ended(actor: Seen, spec: TaskSpec | None, now: float, limits: Limits) -> Action | None:
    """What has ended or must be ended whatever is wanted."""
    report, silent_s = actor.report, now - actor.heard
    if report is not None and report.state == "fenced":
        return End(actor.name, report.detail, "stopped")
    if report is not None and report.state == "stopped":
        return End(actor.name, "ended as asked", "stopped")
    if actor.ending_since is not None and now - actor.ending_since > limits.drain_s:
        return End(actor.name, f"did not end within {limits.drain_s:g} s of being asked", "stopped")
    if silent_s > (limits.lease_s if report is not None else max(limits.lease_s, _FIRST_ANSWER_S)):
        return End(actor.name, f"gave no answer for {silent_s:.1f} s", "failed")
    # One step of the archiver may rewrite a month of a table: ended in the middle, it would begin again for ever.
    bounded = spec is None or spec.kind != "archive"
    if report is not None and bounded and report.step_s > limits.step_s:
        return End(actor.name, f"one step has taken {report.step_s:.0f} s", "failed")
    return None


def _asked_to_end(spec: TaskSpec | None, actor: Seen) -> Action | None:
    if actor.ending_since is not None:
        return None
    if spec is None:
        return Drain(actor.name, "no longer wanted")
    if actor.report is not None and actor.report.digest != spec.digest:
        return Drain(actor.name, "restarted, or replaced by another definition, generation or number of workers")
    return None
