"""``thyme version``."""

from __future__ import annotations

import typer

import featurelib
from featurelib.cli.options import AsJson
from featurelib.cli.tables import print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("version")(version)


def version(as_json: AsJson = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": featurelib.__version__})
    else:
        print(f"thyme {featurelib.__version__}")
