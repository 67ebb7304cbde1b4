"""The pytest plugin: a fixture ``thyme`` that makes a :class:`~featurelib.testing.MockContext`.

Every pytest run of an environment that has the package loads this module, so it imports nothing heavy by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from featurelib.testing.context import MockContext


@pytest.fixture
def thyme() -> Callable[..., MockContext]:
    """The maker of contexts: a test calls it with the definitions, and what else ``MockContext`` takes."""
    from featurelib.testing.context import MockContext

    return MockContext
