"""``thyme inspect``: one featureset as it is committed, or all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from featurelib.cli.completion import featureset_names
from featurelib.cli.options import ApiUrl, AsJson, Module, load_config, name_of, opened
from featurelib.cli.tables import print_json, print_table
from featurelib.errors import NotFound

_FEATURES = ("feature", "type", "from", "default")
_MEMBERS = ("description", "owner", "project", "tags", "deprecated", "deprecation_reason", "replacement")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(inspect)


def inspect(
    ref: Annotated[
        str | None, typer.Argument(help="Featureset: Name or module:Name.", autocompletion=featureset_names)
    ] = None,
    module: Module = None,  # noqa: ARG001  # names are unique on the platform
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Show a featureset: its features, where each comes from, what is said of it; without a name, all of them."""
    status, about = load(api_url)
    if ref is None:
        print_json(status) if as_json else show_all(status["featuresets"], about)
        return
    featureset = chosen(status["featuresets"], about, name_of(ref))
    print_json(featureset) if as_json else show(featureset)


def load(api_url: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The status of the platform, and the metadata of each featureset."""
    with opened(load_config(api_url=api_url)) as client:
        return client.status(), {each["name"]: each.get("metadata") or {} for each in client.featuresets()}


def chosen(found: list[dict[str, Any]], about: dict[str, Any], name: str) -> dict[str, Any]:
    """The one of that name, with its metadata.

    Raises:
        NotFound: there is none; lists those there are.
    """
    for each in found:
        if each["name"] == name:
            return {**each, "metadata": about.get(name, {})}
    known = ", ".join(sorted(each["name"] for each in found)) or "none"
    message = f"there is no featureset {name!r}; there are: {known}"
    raise NotFound(message)


def show_all(found: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """One line per featureset."""
    rows = [
        [
            each["name"],
            str(len(each.get("features") or ())),
            *(_said(about.get(each["name"], {}), member) for member in ("owner", "description")),
        ]
        for each in found
    ]
    print_table(("featureset", "features", "owner", "description"), rows)


def show(featureset: dict[str, Any]) -> None:
    """What is said of it, then its features."""
    print(featureset["name"])
    for member in _MEMBERS:
        text = _said(featureset["metadata"], member)
        if text:
            print(f"{member.replace('_', ' ')}: {text}")
    origins = _origins(featureset.get("extractors") or ())
    print_table(_FEATURES, [_row(feature, origins) for feature in featureset.get("features") or ()])


def _row(feature: dict[str, Any], origins: dict[str, str]) -> list[str]:
    default = feature.get("default")
    origin = "the request" if feature.get("request") else origins.get(feature["name"], "the entity")
    return [feature["name"], feature["dtype"], origin, "" if default is None else str(default)]


def _origins(extractors: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Feature → the column that it is looked up in, or the extractor that computes it."""
    found: dict[str, str] = {}
    for extractor in extractors:
        column = extractor.get("lookup_info")
        text = f"{column['dataset_name']}.{column['field_name']}" if column else _call(extractor)
        found.update(dict.fromkeys(extractor["outputs"], text))
    return found


def _call(extractor: dict[str, Any]) -> str:
    return f"{extractor['name']}({', '.join(extractor['inputs'])})"


def _said(metadata: dict[str, Any], member: str) -> str:
    value = metadata.get(member)
    if isinstance(value, dict):
        return ", ".join(f"{name}:{text}" if text else name for name, text in value.items())
    return "" if value in {None, False} else "yes" if value is True else str(value)
