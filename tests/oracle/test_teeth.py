"""The oracle's teeth: an engine that is broken on purpose must differ from lists and loops."""

from __future__ import annotations

import pytest

from tests.support.mutants import MUTANTS, Mutant
from tests.support.paths import as_of_now, differences
from tests.support.random_pipelines import world

WORLDS = 300
"""The most worlds a mutant may survive; the run of the sound engine has twice as many."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_an_engine_is_caught_in_which(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        mutant.break_it(broken)
        worlds = (as_of_now(world(seed)) for seed in range(WORLDS))
        caught = next((drawn for drawn in worlds if differences(drawn, mutant.path)), None)
    assert caught is not None
    assert differences(caught, mutant.path) == []
