"""Windows: which events an aggregate sees at an instant R (decision 3).

A window is an interval of event time that follows from R alone; :meth:`bounds` gives it in microseconds.
Only a session's start depends on the events: its window is a lifetime, cut by the aggregate.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from featurelib.clock import SECOND, Duration, Instant, format_duration, parse_duration

Micros = Annotated[PositiveInt, Field(multiple_of=SECOND)]
Shift = Annotated[NonNegativeInt, Field(multiple_of=SECOND)]
MAX_ROWS = 1_000
"""The largest row cap: a capped window keeps that many rows per pane."""


class Bounds(NamedTuple):
    """The events of a window: ``low <= t <= high`` (``low=None``: no start), with versions as of ``as_of``."""

    low: Instant | None
    high: Instant
    as_of: Instant


class _Window(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def bounds(self, at: Instant) -> Bounds:
        """The interval a read at ``at`` covers."""
        raise NotImplementedError

    @property
    def reach_us(self) -> Duration | None:
        """How far before R the oldest event may lie; ``None``: for ever."""
        raise NotImplementedError


class Continuous(_Window):
    """Events with ``R - size <= t <= R``, both ends included, exact to the microsecond.

    ``offset`` moves R back: ``Continuous("1d", offset="7d")`` is the same day a week ago. ``max_rows`` keeps only the
    newest rows of the window.
    """

    kind: Literal["continuous"] = "continuous"
    size_us: Micros
    offset_us: Shift = 0
    max_rows: Annotated[PositiveInt, Field(le=MAX_ROWS)] | None = None

    def __init__(self, size: str = "", *, offset: str = "", max_rows: int | None = None, **stored: Any) -> None:
        cap = {"max_rows": stored.pop("max_rows", max_rows)}
        super().__init__(**cap, **_given(type(self), stored, size_us=size, offset_us=offset))

    def bounds(self, at: Instant) -> Bounds:
        """``[R - offset - size, R - offset]``."""
        end = at - self.offset_us
        return Bounds(end - self.size_us, end, end)

    @property
    def reach_us(self) -> Duration | None:
        """Size and offset."""
        return self.size_us + self.offset_us

    def __str__(self) -> str:
        return format_duration(self.size_us)


class Lifetime(_Window):
    """Every event with ``t <= R``; ``offset`` moves R back, ``max_rows`` keeps only the newest rows."""

    kind: Literal["lifetime"] = "lifetime"
    offset_us: Shift = 0
    max_rows: Annotated[PositiveInt, Field(le=MAX_ROWS)] | None = None

    def __init__(self, *, offset: str = "", max_rows: int | None = None, **stored: Any) -> None:
        cap = {"max_rows": stored.pop("max_rows", max_rows)}
        super().__init__(**cap, **_given(type(self), stored, offset_us=offset))

    def bounds(self, at: Instant) -> Bounds:
        """Everything up to ``R - offset``."""
        end = at - self.offset_us
        return Bounds(None, end, end)

    @property
    def reach_us(self) -> Duration | None:
        """For ever."""
        return None

    def __str__(self) -> str:
        return ""


class Hopping(_Window):
    """The last window ``[start, start + size)`` closed at R; windows begin every ``stride``.

    Starts are aligned to the Unix epoch plus ``offset``. ``lookback`` moves R back.
    """

    kind: Literal["hopping"] = "hopping"
    size_us: Micros
    stride_us: Micros
    offset_us: Shift = 0
    lookback_us: Shift = 0

    def __init__(
        self, size: str = "", stride: str = "", *, offset: str = "", lookback: str = "", **stored: Any
    ) -> None:
        super().__init__(
            **_given(type(self), stored, size_us=size, stride_us=stride, offset_us=offset, lookback_us=lookback)
        )

    @model_validator(mode="after")
    def _strides_within_size(self) -> Hopping:
        if self.stride_us > self.size_us:
            message = "stride is longer than size: events between two windows would belong to none"
            raise ValueError(message)
        return self

    def bounds(self, at: Instant) -> Bounds:
        """The last closed window; corrections count as of ``R - lookback``."""
        as_of = at - self.lookback_us
        # Starts are on the grid; ends are, too, when the size is a whole number of strides.
        start = (as_of - self.size_us - self.offset_us) // self.stride_us * self.stride_us + self.offset_us
        return Bounds(start, start + self.size_us - 1, as_of)

    @property
    def reach_us(self) -> Duration | None:
        """Size, one stride and the look-back."""
        return self.size_us + self.stride_us + self.lookback_us

    def __str__(self) -> str:
        return f"{format_duration(self.size_us)} every {format_duration(self.stride_us)}"


class Tumbling(_Window):
    """The last window ``[start, start + size)`` closed at R; windows follow each other from the epoch + offset on."""

    kind: Literal["tumbling"] = "tumbling"
    size_us: Micros
    offset_us: Shift = 0

    def __init__(self, size: str = "", *, offset: str = "", **stored: Any) -> None:
        super().__init__(**_given(type(self), stored, size_us=size, offset_us=offset))

    def bounds(self, at: Instant) -> Bounds:
        """The last closed window."""
        end = (at - self.offset_us) // self.size_us * self.size_us + self.offset_us
        return Bounds(end - self.size_us, end - 1, at)

    @property
    def reach_us(self) -> Duration | None:
        """Twice the size."""
        return 2 * self.size_us

    def __str__(self) -> str:
        return f"tumbling {format_duration(self.size_us)}"


class Session(_Window):
    """The newest session at R, open or closed: events that follow each other with pauses of at most ``gap``."""

    kind: Literal["session"] = "session"
    gap_us: Micros

    def __init__(self, gap: str = "", **stored: Any) -> None:
        super().__init__(**_given(type(self), stored, gap_us=gap))

    def bounds(self, at: Instant) -> Bounds:
        """Everything up to R: where the session began is found among its events."""
        return Bounds(None, at, at)

    @property
    def reach_us(self) -> Duration | None:
        """For ever: a session has no longest length."""
        return None

    def __str__(self) -> str:
        return f"session {format_duration(self.gap_us)}"


AnyWindow = Continuous | Lifetime | Tumbling | Hopping | Session
Window = Annotated[AnyWindow, Field(discriminator="kind")]


def parse_window(text: str | AnyWindow | None) -> AnyWindow:
    """Read a window string; empty means lifetime.

    Raises:
        ValueError: the text is not a strict duration.
    """
    if isinstance(text, _Window):
        return text
    if text is None or text == "":
        return Lifetime()
    if isinstance(text, type) and issubclass(text, _Window):
        message = f"window= takes a window, not its class; write {text.__name__}(…)"
        raise ValueError(message)  # noqa: TRY004  # to pydantic a value like any other
    return Continuous(size_us=parse_duration(text))


def _given(window: type[_Window], stored: dict[str, Any], **durations: str) -> dict[str, Any]:
    """The stored form of what was written: durations as text become microseconds.

    Raises:
        TypeError: a duration is missing, or a keyword unknown.
        ValueError: a text is not a strict duration.
    """
    given = {**stored, **{name: _read(window, name, text) for name, text in durations.items() if text != ""}}
    if "kind" not in stored:  # as a user writes it; the stored form is checked by its types alone
        _check_written(window, given)
    return given


def _read(window: type[_Window], name: str, text: str) -> Duration:
    try:
        return parse_duration(text)
    except ValueError as error:
        message = f"{window.__name__}({name.removesuffix('_us')}=…): {error}"
        raise ValueError(message) from None


def _check_written(window: type[_Window], given: dict[str, Any]) -> None:
    fields = {name: field for name, field in window.model_fields.items() if name != "kind"}
    unknown = [name for name in given if name not in fields]
    missing = [name for name, field in fields.items() if field.is_required() and name not in given]
    offered = ", ".join(f"{name.removesuffix('_us')}=" for name in fields)
    if unknown:
        message = f"{window.__name__}() takes no {unknown[0]}=; it takes {offered}"
        raise TypeError(message)
    if missing:
        needed = " and ".join(f"{name.removesuffix('_us')}=" for name in missing)
        message = f"{window.__name__}() needs {needed}, a duration such as '30m'; it takes {offered}"
        raise TypeError(message)
