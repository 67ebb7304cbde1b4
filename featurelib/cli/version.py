"""``thyme version``."""

from __future__ import annotations

import typer

import featurelib


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("version")(version)


def version() -> None:
    """Print the version."""
    print(f"thyme {featurelib.__version__}")
