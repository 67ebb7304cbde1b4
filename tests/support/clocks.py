"""Time as a test has it."""

from __future__ import annotations

from featurelib.clock import Duration, Instant


class MovedClock:
    """Stands still until a test moves it, backwards too."""

    def __init__(self, time: Instant = 0) -> None:
        self.time = time

    def now(self) -> Instant:
        """The time now."""
        return self.time

    def advance(self, duration: Duration) -> None:
        """Let it pass."""
        self.time += duration
