"""``thyme training-sets``: have training sets made by the platform, watch that, take their rows, end and delete."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurelib.cli.completion import featureset_names
from featurelib.cli.following import followed
from featurelib.cli.options import ApiUrl, AsJson, load_config, name_of, opened
from featurelib.cli.progress import waiting
from featurelib.cli.results import check_writable
from featurelib.cli.tables import number, print_json, print_table

if TYPE_CHECKING:
    from featurelib.client import ThymeClient

_COLUMNS = ("id", "featureset", "state", "rows", "parts", "asked for", "detail")
_ABOUT = (
    "id",
    "featureset",
    "state",
    "error",
    "detail",
    "spine",
    "like",
    "entity_column",
    "timestamp_column",
    "knowledge",
    "attempt",
    "submission_id",
    "requested_by",
    "created_at",
    "updated_at",
)
_MADE_OF = ("registry_version", "definition", "read_at", "complete_rows", "rows_sha256")
_ENDINGS = (".parquet", ".arrows")
# The service answers sooner when there is news.
_WAIT_S = 5.0
_Follow = Annotated[bool, typer.Option("--follow", help="Wait until it is over; a bar shows how far it is.")]
_Id = Annotated[str, typer.Argument(help="Of the training set; `thyme training-sets list` shows it.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Training sets that the platform makes and keeps: their progress, their rows, their end.",
        no_args_is_help=True,
    )
    group.command("start")(start)
    group.command("list")(listing)
    group.command("show")(show)
    group.command("follow")(follow)
    group.command("rows")(rows)
    group.command("cancel")(cancel)
    group.command("delete")(delete)
    app.add_typer(group, name="training-sets")


def start(  # noqa: PLR0913, PLR0917  # one parameter per option
    ref: Annotated[
        str | None, typer.Argument(help="Featureset: Name or module:Name.", autocompletion=featureset_names)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Rows to send: .parquet .csv .tsv .arrow, Parquet folder, Delta."),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Instead of --input, a path or URL that the platform reads itself.")
    ] = None,
    like: Annotated[str | None, typer.Option(help="Id of a training set to make again; nothing else with it.")] = None,
    entity_column: Annotated[str | None, typer.Option(help="Column of ids.")] = None,
    timestamp_column: Annotated[str | None, typer.Option(help="Column of instants.")] = None,
    knowledge: Annotated[str | None, typer.Option(help="as_served: only what had been accepted by then.")] = None,
    follow_it: _Follow = False,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Ask for a training set; with --follow, exit 1 unless it completes."""
    how = {"entity_column": entity_column, "timestamp_column": timestamp_column, "knowledge": knowledge}
    _check_order(ref, file, where, like, how)
    with opened(load_config(api_url=api_url)) as client:
        with waiting("sending the rows"):
            name = None if ref is None else name_of(ref)
            found = client.request_training_set(name, file, where=where, like=like, **how)
        if follow_it:
            found = _followed(client, found)
    _say(found, as_json=as_json)
    if follow_it:
        _end_as(found)


def listing(
    featureset: Annotated[
        str | None, typer.Argument(help="Only of this featureset.", autocompletion=featureset_names)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most training sets.")] = 20,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Show the latest training sets, newest first."""
    name = None if featureset is None else name_of(featureset)
    with opened(load_config(api_url=api_url)) as client:
        found = client.training_sets(featureset=name, limit=limit)
    if as_json:
        print_json(found)
    else:
        print_table(_COLUMNS, [_row(each) for each in found], whole=_COLUMNS[:3])


def show(training_id: _Id, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Show how far a training set is, and what it was made of once it is complete."""
    with opened(load_config(api_url=api_url)) as client:
        found = client.training_set(training_id)
    if as_json:
        print_json(found)
    else:
        print_table(("", ""), [[name, text] for name, text in _told(found) if text])


def follow(training_id: _Id, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Wait until a training set is over; exit 1 unless it completes."""
    with opened(load_config(api_url=api_url)) as client:
        found = _followed(client, client.training_set(training_id))
    _say(found, as_json=as_json)
    _end_as(found)


def rows(
    training_id: _Id,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help=f"File to write: {' or '.join(_ENDINGS)}, an Arrow stream."),
    ],
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Write the rows to a file, in the order of the spine, once the training set is complete; exit 1 unless it is."""
    if output.suffix not in _ENDINGS:
        raise typer.BadParameter(f"{output} has none of the endings {', '.join(_ENDINGS)}", param_hint="--output")
    check_writable(output, "--output", replaced=True)
    with opened(load_config(api_url=api_url)) as client:
        found = _followed(client, client.training_set(training_id))
        if found["state"] == "complete":
            with waiting(f"fetching {number(found['rows'])} rows"):
                client.download_training_set(training_id, output)
    if found["state"] != "complete" or as_json:
        _say(found, as_json=as_json)
    else:
        print(f"wrote {found['rows']} rows to {output}")
    _end_as(found)


def cancel(training_id: _Id, follow_it: _Follow = False, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """End a training set; nothing of it is kept."""
    with opened(load_config(api_url=api_url)) as client:
        found = client.cancel_training_set(training_id)
        if follow_it:
            found = _followed(client, found)
    _say(found, as_json=as_json)


def delete(training_id: _Id, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Delete a training set that is over, and its files."""
    with opened(load_config(api_url=api_url)) as client:
        found = client.delete_training_set(training_id)
    if as_json:
        print_json(found)
    else:
        print(f"training set {found['id']} of {found['featureset']} is deleted")


def _check_order(
    ref: str | None, file: Path | None, where: str | None, like: str | None, how: dict[str, str | None]
) -> None:
    if [file, where, like].count(None) != 2:  # noqa: PLR2004  # all but one
        raise typer.BadParameter("give one of --input, --where and --like", param_hint="--input")
    if like is not None and (ref is not None or any(how.values())):
        raise typer.BadParameter("the training set it names says all of it; give nothing else", param_hint="--like")
    if like is None and ref is None:
        raise typer.BadParameter("name the featureset", param_hint="REF")


def _followed(client: ThymeClient, found: dict[str, Any]) -> dict[str, Any]:
    """The training set once it is over; on a terminal a bar shows how many of its parts are read."""
    from featurelib.client.training import TRAINING_SET_OVER

    def ask(now: dict[str, Any]) -> dict[str, Any]:
        return client.training_set(now["id"], wait_s=_WAIT_S)

    return followed(found, ask, TRAINING_SET_OVER, lambda now: (now["parts_done"], now["parts"]))


def _say(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    told = (f"{found['rows']} rows" if found["state"] == "complete" else found["detail"]) or ""
    said = f": {told}" if told else ""
    print(f"training set {found['id']} of {found['featureset']} is {found['state']}{said}")


def _end_as(found: dict[str, Any]) -> None:
    if found["state"] != "complete":
        raise typer.Exit(1)


def _row(found: dict[str, Any]) -> list[str]:
    return [
        found["id"],
        found["featureset"],
        found["state"],
        number(found["rows"]),
        _parts(found),
        found["created_at"],
        found["detail"],
    ]


def _parts(found: dict[str, Any]) -> str:
    return "" if found["parts"] is None else f"{found['parts_done']} of {found['parts']}"


def _told(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What is said of one training set, line by line; those without a text are left out."""
    about = [(name, str(found[name] or "")) for name in _ABOUT]
    about[5:5] = [("rows", number(found["rows"])), ("parts read", _parts(found))]
    manifest = found["manifest"]
    if manifest is None:
        return about
    made_of = [(name, str(manifest[name])) for name in _MADE_OF]
    records = [(f"records of {name}", f"{sum(each['offsets']):,}") for name, each in manifest["inputs"].items()]
    files = [(each["name"], f"{each['bytes']:,} bytes, sha256 {each['sha256']}") for each in manifest["files"]]
    return about + made_of + records + [("columns", ", ".join(manifest["columns"]))] + files
