"""The pytest plugin, as another project gets it."""

import tomllib
from importlib import import_module
from pathlib import Path

import featurelib

pytest_plugins = ["pytester"]

TEST = """
from datetime import datetime

from featurelib import Count, dataset, field, inputs, pipeline


@dataset()
class Tick:
    name: str = field(key=True)
    at: datetime = field(timestamp=True)


@dataset(index=True)
class Ticks:
    name: str = field(key=True)
    n: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Tick)
    def count(cls, ticks):
        return ticks.groupby("name").aggregate(n=Count())


def test_ticks(thyme):
    ctx = thyme(Tick, Ticks)
    ctx.add_events(Tick, [{"name": "a", "at": "2026-04-01"}])
    assert ctx.get_aggregates(Ticks, "a") == {"n": 1}


def test_each_context_is_empty(thyme):
    assert thyme(Tick, Ticks).lookup(Ticks, "a") is None
"""


def test_the_fixture_makes_contexts(pytester):
    pytester.makeconftest("from featurelib.testing.plugin import thyme")
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(TEST)
    pytester.runpytest_subprocess("-p", "no:randomly").assert_outcomes(passed=2)


def test_the_package_declares_its_plugin():
    project = tomllib.loads((Path(featurelib.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    plugin = import_module(project["entry-points"]["pytest11"]["thyme"])
    assert plugin.thyme.__name__ == "thyme"
