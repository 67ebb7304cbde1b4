"""``thyme erase``: takes entities out of the platform."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurelib.cli.completion import dataset_names
from featurelib.cli.options import ApiUrl, AsJson, load_config, name_of, opened
from featurelib.cli.tables import print_json
from featurelib.errors import ThymeError

if TYPE_CHECKING:
    from featurelib.client import ThymeClient

_POLL_S = 0.5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(erase)


def erase(
    dataset: Annotated[str, typer.Argument(help="Dataset: Name or module:Name.", autocompletion=dataset_names)],
    entity_id: Annotated[list[str], typer.Option("--entity-id", "-e", help="An entity's id; may be repeated.")],
    block: Annotated[bool, typer.Option("--block", help="Refuse records of these entities from now on.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until nothing of them is left.")] = False,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Erase everything that was accepted of some entities of a dataset."""
    with opened(load_config(api_url=api_url)) as client:
        asked = client.begin_erasure(name_of(dataset), entity_id, block=block)
        if not as_json:
            print(f"{asked['entities_erased']} entities erased; erasure {asked['erasure_id']} is {asked['state']}")
        receipt = _wait(client, asked, quiet=as_json) if wait else asked
    if as_json:
        print_json(receipt)


def _wait(client: ThymeClient, asked: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """The receipt once it is complete; each state on the way is said, unless ``quiet``."""
    receipt = asked
    while receipt["state"] != "complete":
        time.sleep(_POLL_S)
        try:
            found = client.erasure(asked["erasure_id"])
        except ThymeError as error:
            if not error.retryable:
                raise
            continue  # what was asked for goes on; to ask again would be a second erasure
        if found["state"] != receipt["state"] and not quiet:
            print(f"{found['state']}{_counts(found['progress'])}")
        receipt = found
    return receipt


def _counts(progress: dict[str, Any]) -> str:
    counts = [f"{value} {name.replace('_', ' ')}" for name, value in progress.items() if isinstance(value, int)]
    return f": {', '.join(counts)}" if counts else ""
