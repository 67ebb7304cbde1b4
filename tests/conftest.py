"""Fixtures that tests of several folders share."""

pytest_plugins = ["tests.support.databases", "tests.support.redis_server"]
