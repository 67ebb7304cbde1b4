"""Definitions tested in process: the real engine over records held in memory, no services.

``MockContext`` types, marks and orders records as the log does, folds them with the engine's programs, and reads
features by walking the same read plans as the query server. There is no second implementation of anything here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurelib.testing.context import MockContext
    from featurelib.testing.events import DeadLetter, ExpectationViolation

__all__ = ["DeadLetter", "ExpectationViolation", "MockContext"]

# Deferred: the pytest plugin beside them is imported by every run of pytest, whether it tests definitions or not.
_DEFERRED = {
    "DeadLetter": "featurelib.testing.events",
    "ExpectationViolation": "featurelib.testing.events",
    "MockContext": "featurelib.testing.context",
}


def __getattr__(name: str) -> Any:
    if name not in _DEFERRED:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_DEFERRED[name]), name)
