"""``thyme init``: a starter project that runs."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from featurelib.cli.options import AsJson
from featurelib.cli.tables import print_json
from featurelib.clock import DAY, HOUR, Instant, SystemClock, format_instant

_RIDERS, _RIDES = 20, 400
_CITIES = ("Oslo", "Bergen", "Trondheim", "Stavanger")
_ASKED = 40
_MINUTE_OF_A_DAY = DAY // 1440


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(init)


def init(
    folder: Annotated[Path, typer.Argument(help="Where; it is made when missing.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a starter project: definitions, records for them, and their tests."""
    made = project(SystemClock().now())
    write(made, folder, force=force)
    if as_json:
        print_json({"folder": str(folder), "files": sorted(made)})
        return
    for name in made:
        print(f"  {folder / name}")
    enter = "" if folder == Path() else f"cd {folder} && "
    print(f"next: {enter}thyme up && thyme commit features.py")
    print("      some seconds later: thyme query RiderFeatures -e 1,2,3")


def project(now: Instant) -> dict[str, str]:
    """File name → text; the records end just before ``now``, so that the windows hold some."""
    starter = files("featurelib.cli") / "starter"
    texts = sorted((file for file in starter.iterdir() if file.name.endswith(".txt")), key=lambda file: file.name)
    made = {file.name.removesuffix(".txt"): file.read_text(encoding="utf-8") for file in texts}
    rides = list(_rides(now))
    lines = "".join(json.dumps(ride) + "\n" for ride in rides)
    return {**made, "rides.jsonl": lines, "training.csv": _training(rides)}


def write(made: Mapping[str, str], folder: Path, *, force: bool) -> None:
    """All files, or none where one stands in the way and ``force`` is not given.

    Raises:
        BadParameter: a file is there, or the folder cannot be written.
    """
    there = [name for name in made if (folder / name).exists()]
    if there and not force:
        raise typer.BadParameter(f"{folder / there[0]} is there already; --force replaces it", param_hint="FOLDER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in made.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{folder}: {error.strerror}", param_hint="FOLDER") from None


def _rides(now: Instant) -> Iterator[dict[str, Any]]:
    """Rides of the last ten days, oldest first; the same but for their dates whenever this is called."""
    chance = random.Random(7)  # noqa: S311  # made-up rides
    last = now - now % _MINUTE_OF_A_DAY - HOUR
    moments = sorted(last - chance.randrange(10 * DAY // HOUR * 60) * _MINUTE_OF_A_DAY for _ in range(_RIDES))
    for moment in moments:
        yield {
            "rider": chance.randint(1, _RIDERS),
            "city": chance.choice(_CITIES),
            "fare": round(chance.uniform(4, 40), 2),
            "cash": chance.random() < 0.2,  # noqa: PLR2004  # one in five
            "ended_at": format_instant(moment),
        }


def _training(rides: list[dict[str, Any]]) -> str:
    """Riders at the ends of some of their rides."""
    chosen = random.Random(8).sample(rides, _ASKED)  # noqa: S311
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("entity_id", "timestamp"))
    table.writerows((ride["rider"], ride["ended_at"]) for ride in chosen)
    return text.getvalue()
