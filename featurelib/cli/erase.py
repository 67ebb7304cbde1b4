"""``thyme erase``: takes entities out of the platform."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurelib.errors import ThymeError

if TYPE_CHECKING:
    from featurelib.client import ThymeClient

_POLL_S = 0.5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(erase)


def erase(
    dataset: Annotated[str, typer.Argument(help="Dataset: Name or module:Name.")],
    entity_id: Annotated[list[str], typer.Option("--entity-id", "-e", help="An entity's id; may be repeated.")],
    block: Annotated[bool, typer.Option("--block", help="Refuse records of these entities from now on.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until nothing of them is left.")] = False,
    api_url: Annotated[str | None, typer.Option(envvar="THYME_API_URL", help="Definition service.")] = None,
) -> None:
    """Erase everything that was accepted of some entities of a dataset."""
    from featurelib.client import Config, ThymeClient

    with ThymeClient(Config.load().with_overrides(api_base=api_url)) as client:
        asked = client.begin_erasure(dataset.rpartition(":")[2], entity_id, block=block)
        print(f"{asked['entities_erased']} entities erased; erasure {asked['erasure_id']} is {asked['state']}")
        if wait:
            _wait(client, asked["erasure_id"], asked["state"])


def _wait(client: ThymeClient, erasure_id: str, state: str) -> None:
    said = state
    while said != "complete":
        time.sleep(_POLL_S)
        try:
            receipt = client.erasure(erasure_id)
        except ThymeError as error:
            if not error.retryable:
                raise
            continue  # what was asked for goes on; to ask again would be a second erasure
        if receipt["state"] != said:
            said = receipt["state"]
            print(f"{said}{_counts(receipt['progress'])}")


def _counts(progress: dict[str, Any]) -> str:
    counts = [f"{value} {name.replace('_', ' ')}" for name, value in progress.items() if isinstance(value, int)]
    return f": {', '.join(counts)}" if counts else ""
