"""Feature modules written by tests: a valid base to vary, and the reading of their expected mistakes.

A line that ends in ``#! code`` is where the mistake ``code`` must be reported; several codes are separated
by commas. Whatever is reported beside them fails the test.
"""

import re
import textwrap
from pathlib import Path

HEAD = """\
from datetime import datetime
from typing import Optional
from featurelib import *
"""

EVENT = """
@dataset(index=True)
class Sale:
    shop: str = field(key=True)
    amount: float = field()
    pieces: int = field()
    paid: bool = field()
    note: Optional[str] = field()
    at: datetime = field(timestamp=True)
"""

RATE = """
@dataset(index=True)
class Rate:
    shop: str = field(key=True)
    rate: float = field()
    at: datetime = field(timestamp=True)
"""

STATS = """
@dataset(index=True)
class ShopStats:
    shop: str = field(key=True)
    total_1d: float = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Sale)
    def by_shop(cls, sales):
        return sales.groupby("shop").aggregate(
            total_1d=Sum(of="amount", window="1d"),
        )
"""

FEATURES = """
@featureset
class ShopFeatures:
    shop: str = feature()
    total_1d: float = feature(ref=ShopStats.total_1d, default=0.0)
    factor: float = feature(request=True, default=1.0)
    scaled: float = feature()

    @extractor
    @extractor_inputs("total_1d", "factor")
    @extractor_outputs("scaled")
    def scale(cls, ts, total, factor):
        return total * factor
"""

VALID = HEAD + EVENT + STATS + FEATURES

_MARK = re.compile(r"#!\s*([a-z_, ]+)\s*$")


def write_module(folder: Path, text: str, name: str = "features.py") -> Path:
    """The module as a file."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def expected_mistakes(text: str) -> list[tuple[str, int]]:
    """The marked codes with their lines, sorted."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        match = _MARK.search(line)
        if match:
            found += [(code.strip(), number) for code in match[1].split(",")]
    return sorted(found)


def pipeline_module(body: str, fields: str = "total: float = field()", sources: str = EVENT) -> str:
    """A module with one pipeline over ``Sale`` whose body is given."""
    return (
        HEAD
        + sources
        + "\n@dataset(index=True)\nclass Out:\n    shop: str = field(key=True)\n"
        + textwrap.indent(fields, "    ")
        + "\n    at: datetime = field(timestamp=True)\n\n    @pipeline()\n    @inputs(Sale)\n    def p(cls, sales):\n"
        + textwrap.indent(textwrap.dedent(body).strip("\n"), "        ")
        + "\n"
    )
