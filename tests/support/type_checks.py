"""What a user's type checker says about a program: mypy, strict, over the installed package."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from mypy import api

_LINE = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): (?P<level>error|note): (?P<text>.*?)(?:  \[(?P<code>[a-z-]+)\])?$")
_REVEALED = re.compile(r'^Revealed type is "(.*)"$')
# The package's modules; a reader of the test needs the names alone.
_QUALIFIED = re.compile(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])")


class Checked(NamedTuple):
    """What mypy found. ``revealed``: expression → type, in order; ``errors``: (line of the program, code)."""

    revealed: dict[str, str]
    errors: list[tuple[str, str]]
    report: str


def check(folder: Path, program: str, cache: Path) -> Checked:
    """Check a program that stands in the folder, beside what it imports."""
    (folder / "program.py").write_text(program, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)  # as a user would: their own modules are found, and those of this repository are not
    try:
        report, failure, _ = api.run(["--strict", "--config-file=", f"--cache-dir={cache}", "program.py"])
    finally:
        os.chdir(before)
    assert not failure, failure
    return _read(report, program.splitlines())


def _read(report: str, lines: list[str]) -> Checked:
    revealed: dict[str, str] = {}
    errors = []
    for match in filter(None, map(_LINE.match, report.splitlines())):
        own = match["file"] == "program.py"
        source = lines[int(match["line"]) - 1].strip() if own else f"{match['file']}:{match['line']}"
        shown = _REVEALED.match(match["text"])
        if shown:
            revealed[source.removeprefix("reveal_type(").removesuffix(")")] = _QUALIFIED.sub("", shown[1])
        elif match["level"] == "error":
            errors.append((source, match["code"]))
    return Checked(revealed, errors, report)
