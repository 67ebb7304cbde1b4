"""Fixtures that tests of several folders share."""

import gc
from pathlib import Path

import pytest

from tests.support import profiles

profiles.load()
PLATFORM_MARK = "mark.cluster"

pytest_plugins = [
    "tests.support.amazon",
    "tests.support.databases",
    "tests.support.redis_server",
    "tests.support.replay",
    "tests.support.tls_postgres",
]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Platform tests asked for alone: the files of all the others take 10 s to load."""
    alone = config.getoption("markexpr") == "cluster" and collection_path.suffix == ".py"
    return True if alone and PLATFORM_MARK not in collection_path.read_text() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a platform test that would not be found alone."""
    for path in {item.path for item in items if item.get_closest_marker("cluster")}:
        if PLATFORM_MARK not in path.read_text():
            raise pytest.UsageError(f"{path} holds tests of platforms: write pytest.{PLATFORM_MARK} in it")


def pytest_collection_finish() -> None:
    """Thousands of collected tests live to the end: no pass of the garbage collector need look at them again."""
    gc.collect()
    gc.freeze()
