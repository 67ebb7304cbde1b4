"""What every benchmark shares: figures, their table with machine and date, and the JSON beside it."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

OUTPUT = Path(__file__).resolve().parents[2] / "build" / "bench"


class Figure(NamedTuple):
    """One measured number. ``peer`` is what it stands beside in the same run; ``note`` says how it was taken."""

    figure: str
    value: float
    unit: str
    peer: float | None = None
    note: str = ""


def median(values: Sequence[float]) -> float:
    """The median; of an even number, the mean of the two in the middle."""
    return statistics.median(values)


def report(name: str, figures: Sequence[Figure]) -> None:
    """Print the table and write ``build/bench/<name>.json``."""
    memory = round(psutil.virtual_memory().total / 2**30)
    machine = f"{os.cpu_count()} cores, {memory} GiB, Python {platform.python_version()}, {platform.system()}"
    when = datetime.now(UTC).strftime("%Y-%m-%d")  # noqa: TID251  # the day of a measurement is the wall clock's
    table = Table(title=f"{name}: {machine}, {when}", title_justify="left")
    for column in ("figure", "value", "unit", "peer", "note"):
        table.add_column(column, justify="right" if column in ("value", "peer") else "left")
    for figure in figures:
        peer = "" if figure.peer is None else f"{figure.peer:,.2f}"
        table.add_row(figure.figure, f"{figure.value:,.2f}", figure.unit, peer, figure.note)
    Console(width=140).print(table)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{name}.json").write_text(json.dumps([figure._asdict() for figure in figures], indent=1) + "\n")
