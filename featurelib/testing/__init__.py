"""Definitions tested in process: the real engine over records held in memory, no services.

``MockContext`` types, marks and orders records as the log does, folds them with the engine's programs, and reads
features by walking the same read plans as the query server. There is no second implementation of anything here.
"""

from featurelib.testing.context import MockContext
from featurelib.testing.events import DeadLetter, ExpectationViolation

__all__ = ["DeadLetter", "ExpectationViolation", "MockContext"]
