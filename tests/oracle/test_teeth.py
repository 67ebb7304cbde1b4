"""The oracle's teeth: an engine that is broken on purpose must differ from lists and loops."""

from __future__ import annotations

import pytest

from tests.support.mutants import MUTANTS, Mutant
from tests.support.paths import as_of_now, differences
from tests.support.random_pipelines import World, world

WORLDS = 300
"""The most worlds a mutant may survive; the run of the sound engine has twice as many."""


def tells_apart(drawn: World, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the broken engine differs from the oracle on a world, and the sound one does not."""
    with monkeypatch.context() as broken:
        mutant.break_it(broken)
        differs = bool(differences(drawn, mutant.path))
    return differs and not differences(drawn, mutant.path)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_an_engine_is_caught_in_which(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(tells_apart(as_of_now(world(seed)), mutant, monkeypatch) for seed in range(WORLDS))
