"""Something of the archiver's that goes wrong for a while: told of once when it begins, and once when it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from featurelib.stores.registry import NewEvent


class Episode:
    """One thing that may go wrong, and whether it does now.

    Args:
        event_type: of the event at the beginning; the one at the end has the same, as ``info``.
        severity: of the event at the beginning.
        subject: what it is about.
        report: takes the events.
    """

    def __init__(
        self,
        event_type: str,
        severity: Literal["warn", "error"],
        subject: str,
        report: Callable[[NewEvent], None],
    ) -> None:
        self.event_type = event_type
        self._severity: Literal["warn", "error"] = severity
        self._subject = subject
        self._report = report
        self.lasts = False
        """Whether it has begun and is not over."""

    def goes_on(self, message: str) -> None:
        """It is so now; told of if it was not so before."""
        if not self.lasts:
            self._tell(self._severity, message)
        self.lasts = True

    def is_over(self, message: str) -> None:
        """It is not so now; told of if it was so before."""
        if self.lasts:
            self._tell("info", message)
        self.lasts = False

    def _tell(self, severity: Literal["info", "warn", "error"], message: str) -> None:
        self._report(
            NewEvent(
                event_type=self.event_type,
                severity=severity,
                source="archive",
                subject=self._subject,
                message=message,
            )
        )
