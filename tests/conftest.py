"""Fixtures that tests of several folders share."""

pytest_plugins = [
    "tests.support.amazon",
    "tests.support.databases",
    "tests.support.redis_server",
    "tests.support.replay",
    "tests.support.tls_postgres",
]
