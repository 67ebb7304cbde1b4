"""Fixtures that tests of several folders share, and how tests are spread over processes."""

import pytest

pytest_plugins = [
    "tests.support.amazon",
    "tests.support.databases",
    "tests.support.redis_server",
    "tests.support.replay",
    "tests.support.tls_postgres",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of whole platforms mostly wait: one process runs them, one after another, and the other all the rest."""
    # The longest piece of work begins first.
    items.sort(key=lambda item: item.get_closest_marker("cluster") is None)
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.xdist_group("platforms"))
