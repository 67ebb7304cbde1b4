"""What is done about the difference between the tasks that should run and the actors that are there."""

from __future__ import annotations

from typing import Any

from jobs.driver import Report, State
from jobs.reconcile import Action, Drain, End, Limits, Seen, Start, absence, caught_up, decide, family
from jobs.wanted import TaskSpec
from tests.unit.jobs.test_wanted import wanted

LIMITS = Limits(lease_s=10.0, step_s=300.0, drain_s=10.0)
NOW = 1_000.0
WANTED = wanted()


def seen(name: str, spec: TaskSpec | None = None, *, heard: float = NOW, state: State = "running", **more: Any) -> Seen:
    """An actor made from a spec, that answered at ``heard``."""
    digest = (spec or WANTED[name]).digest
    step_s = more.pop("step_s", 0.0)
    return Seen(name, heard, Report(digest, state, more.pop("detail", ""), 0, {}, step_s), **more)


def all_seen(**changed: Seen) -> list[Seen]:
    return [changed.get(name.replace(":", "_"), seen(name)) for name in WANTED]


def do(actors: list[Seen], tasks: dict[str, TaskSpec] | None = None, now: float = NOW) -> list[Action]:
    return decide(WANTED if tasks is None else tasks, actors, now, LIMITS)


def started(actions: list[Action]) -> list[str]:
    return sorted(action.spec.name for action in actions if isinstance(action, Start))


def test_everything_wanted_is_started_where_nothing_runs() -> None:
    assert started(do([])) == sorted(WANTED)


def test_nothing_is_done_when_what_runs_is_what_is_wanted() -> None:
    assert do(all_seen()) == []


def test_an_actor_that_nobody_wants_is_asked_to_end_whoever_started_it() -> None:
    orphan = Seen("by_city:1", NOW)
    assert do([*all_seen(), orphan]) == [Drain("by_city:1", "no longer wanted")]
    assert do([*all_seen(), Seen("source:City", NOW)]) == [Drain("source:City", "no longer wanted")]


def test_a_worker_that_gives_no_answer_within_its_lease_is_ended_and_another_one_started_at_once() -> None:
    silent = seen("by_rider:1", heard=NOW - 10.5)
    assert do(all_seen(by_rider_1=silent)) == [
        End("by_rider:1", "gave no answer for 10.5 s", "failed"),
        Start(WANTED["by_rider:1"]),
    ]
    assert do(all_seen(by_rider_1=seen("by_rider:1", heard=NOW - 9.5))) == []


def test_a_new_actor_has_longer_than_a_lease_to_load() -> None:
    assert do(all_seen(by_rider_1=Seen("by_rider:1", NOW - 60))) == []
    assert isinstance(do(all_seen(by_rider_1=Seen("by_rider:1", NOW - 121)))[0], End)


def test_a_worker_that_answers_but_hangs_in_a_step_is_ended() -> None:
    hung = seen("by_rider:0", step_s=301.0)
    first, second = do(all_seen(by_rider_0=hung))
    assert first == End("by_rider:0", "one step has taken 301 s", "failed")
    assert second == Start(WANTED["by_rider:0"])
    assert do(all_seen(by_rider_0=seen("by_rider:0", step_s=299.0))) == []


def test_the_archiver_may_take_as_long_as_it_takes() -> None:
    archive = next(spec for spec in WANTED.values() if spec.kind == "archive")
    long = Seen("archive", NOW, Report(archive.digest, "running", "", 0, {}, 4_000.0))
    assert do(all_seen(archive=long)) == []


def test_a_fenced_worker_is_ended_and_says_why() -> None:
    fenced = seen("by_rider:0", state="fenced", detail="another worker has taken over")
    first, second = do(all_seen(by_rider_0=fenced))
    assert first == End("by_rider:0", "another worker has taken over", "stopped")
    assert second == Start(WANTED["by_rider:0"])


def test_rescaling_asks_every_worker_to_end_before_any_of_the_new_ones_begins() -> None:
    four = wanted(partitions=4)
    actors = [seen(name) for name in WANTED]
    asked = do(actors, four)
    drained = {action.name for action in asked if isinstance(action, Drain)}
    assert drained == {"by_rider:0", "by_rider:1", "Rain_index:0", "Rain_index:1"}
    assert started(asked) == []

    def half_way(name: str) -> Seen:
        if not name.startswith("by_rider"):
            return seen(name, four.get(name))
        return seen(name, ending_since=NOW, state="stopped" if name == "by_rider:0" else "running")

    still = [half_way(name) for name in WANTED]
    assert started(do(still, four)) == ["Rain_index:2", "Rain_index:3"]
    ended = [each for each in still if not each.name.startswith("by_rider")]
    assert started(do(ended, four)) == sorted(name for name in four if name not in {each.name for each in ended})


def test_one_that_does_not_end_in_time_is_ended() -> None:
    slow = seen("by_city:0", WANTED["by_rider:0"], ending_since=NOW - 10.5)
    assert do([*all_seen(), slow]) == [End("by_city:0", "did not end within 10 s of being asked", "stopped")]
    within = seen("by_city:0", WANTED["by_rider:0"], ending_since=NOW - 9.5)
    assert do([*all_seen(), within]) == []


def test_another_pipeline_is_started_while_one_is_being_replaced() -> None:
    draining = [seen("by_rider:0", wanted(partitions=3)["by_rider:0"], ending_since=NOW)]
    assert started(do(draining)) == sorted(set(WANTED) - {"by_rider:0", "by_rider:1"})


def test_an_adopted_actor_of_an_older_definition_is_replaced_once_it_has_said_so() -> None:
    assert do(all_seen(by_rider_0=Seen("by_rider:0", NOW))) == []
    (action,) = do(all_seen(by_rider_0=seen("by_rider:0", wanted(partitions=3)["by_rider:0"])))
    why = "restarted, or replaced by another definition, generation or number of workers"
    assert action == Drain("by_rider:0", why)


def test_what_the_supervisor_itself_missed_is_not_held_against_workers() -> None:
    assert absence(NOW, NOW + 4.0) == 0.0
    lost = absence(NOW, NOW + 60.0)
    later = [caught_up(actor, lost) for actor in all_seen(archive=seen("archive", ending_since=NOW - 1.0))]
    assert do(later, now=NOW + 60.0) == []


def test_workers_of_a_pipeline_belong_together_and_other_tasks_stand_alone() -> None:
    names = ["by_rider:0", "by_rider#2:0", "by_rider@2:11", "source:Ride", "archive"]
    assert [family(name) for name in names] == ["by_rider", "by_rider#2", "by_rider@2", "source:Ride", "archive"]


def test_from_any_state_the_actions_lead_to_what_is_wanted() -> None:
    actors = {
        each.name: each
        for each in [
            *[seen(name, spec) for name, spec in wanted(partitions=5).items() if name != "archive"],
            Seen("by_city:0", NOW - 500),
            seen("source:City", WANTED["archive"], state="retrying"),
        ]
    }
    now = NOW
    for _ in range(60):
        now += 1.0
        for action in decide(WANTED, list(actors.values()), now, LIMITS):
            if isinstance(action, Start):
                assert action.spec.name not in actors
                actors[action.spec.name] = seen(action.spec.name, action.spec)
            elif isinstance(action, End):
                del actors[action.name]
            else:
                before = actors[action.name]
                actors[action.name] = Seen(before.name, before.heard, before.report, now)
        # All but one answer in every round, so that it has to be given up.
        for name, actor in actors.items():
            if name != "by_rider:4":
                actors[name] = Seen(name, now, actor.report, actor.ending_since)
    assert {name: actor.report and actor.report.digest for name, actor in actors.items()} == {
        name: spec.digest for name, spec in WANTED.items()
    }


def test_workers_of_a_paused_pipeline_are_asked_to_end_and_told_why() -> None:
    running = {name: spec for name, spec in WANTED.items() if family(name) != "by_rider"}
    paused = {"by_rider:0", "by_rider:1"}
    assert decide(running, all_seen(), NOW, LIMITS, paused) == [
        Drain("by_rider:0", "paused"),
        Drain("by_rider:1", "paused"),
    ]
    ending = [seen("by_rider:0", ending_since=NOW), seen("by_rider:1", state="stopped", ending_since=NOW)]
    others = [actor for actor in all_seen() if family(actor.name) != "by_rider"]
    assert decide(running, [*others, *ending], NOW, LIMITS, paused) == [End("by_rider:1", "ended as asked", "stopped")]


def test_a_resumed_pipeline_starts_once_all_its_former_workers_have_ended() -> None:
    others = [actor for actor in all_seen() if family(actor.name) != "by_rider"]
    assert do([*others, seen("by_rider:0", ending_since=NOW)]) == []
    assert started(do(others)) == ["by_rider:0", "by_rider:1"]
