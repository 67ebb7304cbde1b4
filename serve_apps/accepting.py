"""What a caller wants to be answered with: the `Accept` header, with its ranges and weights."""

from __future__ import annotations

from collections.abc import Sequence


def preference(accept: bytes, media_type: bytes) -> tuple[float, int, int]:
    """How much a type is wanted: its weight, how exactly it is named, and how early. The exactest range decides.

    Args:
        accept: the header, in lower case; empty where there is none.
        media_type: `application/json` for example.
    """
    found: list[tuple[int, float, int]] = []
    for place, part in enumerate(accept.split(b",")):
        name, *parameters = (piece.strip() for piece in part.split(b";"))
        exact = _exactness(name, media_type)
        if exact:
            found.append((exact, _weight(parameters), -place))
    if not found:
        return 0.0, 0, 0
    exact, weight, place = max(found)
    return (weight, exact, place) if weight else (0.0, 0, 0)


def _exactness(name: bytes, media_type: bytes) -> int:
    ranges: dict[bytes, int] = {media_type: 3, media_type.partition(b"/")[0] + b"/*": 2, b"*/*": 1}
    return ranges.get(name, 0)


def _weight(parameters: Sequence[bytes]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"q":
            return _number(value.strip())
    return 1.0


def _number(text: bytes) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if 0.0 <= number <= 1.0 else 0.0
