"""The newest event of a key, found in its stored state, is the newest of its rows at or before the instant."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from featurelib.clock import DAY, HOUR, Instant, parse_instant
from featurelib.engine.codec import joined_rows
from featurelib.engine.newest import first_fields, newest_event
from featurelib.engine.panes import (
    BESIDE_THE_TREE,
    BUFFER,
    HEADER,
    TAIL,
    Algebra,
    Header,
    KeyState,
    PanesMissing,
    Sealed,
    pane_field,
    root_level,
)

START = parse_instant("2026-03-01T00:00:00Z")


def stored_state(instants: list[Instant], root: int) -> dict[bytes, bytes]:
    """The hash of a key with a row at each of these instants, in this order of arrival."""
    state = KeyState(Algebra(()), root, Header([0]), whole=True)
    fields: dict[bytes, bytes] = {}
    for number, instant in enumerate(instants):
        state.add([(instant, 0, number, "", None)])
        fields |= state.changes()
    return fields


def found(fields: Mapping[bytes, bytes], at: Instant, root: int) -> Instant | None:
    """The search, given whatever it asks for."""
    panes, _ = first_fields(at, root)
    waiting = joined_rows(fields.get(BUFFER), fields.get(TAIL))
    for _ in range(40):
        stored = {pane: fields.get(pane_field(pane)) for pane in panes}
        try:
            return newest_event(Header.decode(fields[HEADER]), waiting, stored, at, root)
        except PanesMissing as missing:
            panes = [*panes, *missing.panes]
    raise AssertionError("it never has enough")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("longest_window", [HOUR, 7 * DAY, None])
def test_it_is_the_newest_row_at_or_before_the_instant(seed, longest_window):
    draw, root = random.Random(seed), root_level(longest_window)
    span = draw.choice([HOUR, 30 * DAY])
    if longest_window == HOUR:
        span = HOUR  # a key quiet for many windows is history's to answer, which another test says
    instants = [START + draw.randrange(span) for _ in range(draw.choice([1, 40, 700]))]
    fields = stored_state(instants, root)
    for at in [START - 1, START + 2 * span, *(START + draw.randrange(span) for _ in range(40)), *instants[:20]]:
        assert found(fields, at, root) == max((each for each in instants if each <= at), default=None)


def test_many_rows_of_one_instant_are_that_instant():
    root = root_level(DAY)
    assert found(stored_state([START] * 200, root), START + HOUR, root) == START


def test_what_is_sealed_is_said_to_be_and_a_newer_row_needs_none_of_it():
    root = root_level(7 * DAY)
    early = [START + number for number in range(300)]
    fields = stored_state([*early, *(START + DAY + number for number in range(300))], root)
    kept = {name: data for name, data in fields.items() if name in BESIDE_THE_TREE or name.startswith(b"%d:" % root)}
    with pytest.raises(Sealed):
        found(kept, START + HOUR, root)
    late = START + 2 * DAY
    waiting = stored_state([*early, late], root)
    assert found(waiting, late, root) == late


def test_a_key_quiet_for_many_windows_is_for_history():
    root = root_level(HOUR)
    with pytest.raises(Sealed):
        found(stored_state([START], root), START + 3_000 * DAY, root)
