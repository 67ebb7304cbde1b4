"""A context of the shop, and the plugin's fixture as users get it."""

import pytest

from featurelib.testing.plugin import thyme  # noqa: F401  # a fixture
from tests.unit.testing import shop


@pytest.fixture
def ctx(thyme):  # noqa: F811  # pytest passes it
    return thyme(shop)
