"""How ids are read: many at once as one by one."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurelib.engine.keys import LONGEST_KEY
from featurelib.engine.read_plan import KeyForm
from featurelib.errors import InvalidRequest

_IDS = st.lists(st.one_of(st.text(max_size=4), st.integers(), st.booleans(), st.floats(), st.none()), max_size=5)


def _one_by_one(form: KeyForm, ids: list[object]) -> object:
    try:
        return [form.read(each) for each in ids]
    except InvalidRequest as error:
        return str(error)


def _at_once(form: KeyForm, ids: list[object]) -> object:
    try:
        entities = form.read_all(ids)
        assert list(form.keys(ids)) == [entity.key for entity in entities]
    except InvalidRequest as error:
        return str(error)
    return entities


@pytest.mark.parametrize("form", [KeyForm("str"), KeyForm("str", 2), KeyForm("int"), KeyForm("datetime")])
@given(ids=_IDS)
@example(ids=["a", "b"])
@example(ids=["a", ""])
@example(ids=["a", "b\0"])
@example(ids=["é", "\ud800"])
@example(ids=["a" * LONGEST_KEY])
@example(ids=["a" * (LONGEST_KEY + 1)])
@example(ids=["1", "-2", '["a", "b"]', "a:b"])
@example(ids=["2026-01-01T00:00:00Z"])
def test_many_ids_are_read_as_each_by_itself(form: KeyForm, ids: list[object]) -> None:
    assert _at_once(form, ids) == _one_by_one(form, ids)
