"""``thyme principals``: users, service accounts, groups and workspaces, and the roles they hold."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurelib.cli.options import ApiUrl, AsJson, load_config, opened
from featurelib.cli.tables import print_json, print_table, say
from featurelib.errors import NotFound

if TYPE_CHECKING:
    from featurelib.client import ThymeClient

_COLUMNS = ("name", "kind", "members", "roles", "id")


class _Kind(StrEnum):
    USER = "user"
    SERVICE_ACCOUNT = "service_account"
    GROUP = "group"
    WORKSPACE = "workspace"


Name = Annotated[str, typer.Argument(help="Id or name of the principal.")]
Role = Annotated[str, typer.Argument(help="Such as consumer, editor, owner, read_scope_role, admin.")]
On = Annotated[str, typer.Option(help="scope:NAME, workspace:NAME or organization.")]
KindOf = Annotated[_Kind | None, typer.Option(help="Of the principal, where several have the name.")]
Several = Annotated[list[str] | None, typer.Option(help="A user or service account; may be given again.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Say whom keys belong to, and what is open to them.", no_args_is_help=True)
    group.command("create")(create)
    group.command("list")(principals)
    group.command("group")(change_group)
    group.command("assign")(assign)
    group.command("unassign")(unassign)
    group.command("activate")(activate)
    group.command("deactivate")(deactivate)
    app.add_typer(group, name="principals")


def create(
    kind: Annotated[_Kind, typer.Argument(help="Keys belong to the first two; a group has members.")],
    name: Annotated[str, typer.Argument(help="There is one of each kind and name.")],
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    email: Annotated[str, typer.Option(help="Of a user.")] = "",
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Make a principal; it holds no role yet."""
    about = {"description": description, "login_email": email}
    with opened(load_config(api_url=api_url)) as client:
        made = client.create_principal(kind.value, name, **{member: text for member, text in about.items() if text})
    if as_json:
        print_json(made)
    else:
        print(f"{made['kind']} {made['name']} made: {made['id']}")


def principals(
    kind: Annotated[_Kind | None, typer.Option(help="Only these.")] = None,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Show every principal with its members and roles."""
    with opened(load_config(api_url=api_url)) as client:
        found = client.principals(kind.value if kind is not None else None)
    if as_json:
        print_json(found)
    else:
        print_table(_COLUMNS, [_row(each) for each in found], whole=_COLUMNS[:1])


def change_group(
    name: Annotated[str, typer.Argument(help="Id or name of the group.")],
    add: Several = None,
    remove: Several = None,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Let users and service accounts join a group and leave it."""
    with opened(load_config(api_url=api_url)) as client:
        group = client.change_members(name, add or (), remove or ())
    say(group, f"group {group['name']}: {', '.join(group['members']) or 'nobody'}", as_json=as_json)


def assign(
    role: Role, principal: Name, on: On, kind: KindOf = None, as_json: AsJson = False, api_url: ApiUrl = None
) -> None:
    """Give a principal a role."""
    with opened(load_config(api_url=api_url)) as client:
        client.assign_role(role, principal, on, kind=kind or _kind_of(client, principal))
    held = {"principal": principal, "role": role, "on": on, "assigned": True}
    say(held, f"{principal} holds {role} on {on}", as_json=as_json)


def unassign(
    role: Role, principal: Name, on: On, kind: KindOf = None, as_json: AsJson = False, api_url: ApiUrl = None
) -> None:
    """Take a role away from a principal."""
    with opened(load_config(api_url=api_url)) as client:
        client.unassign_role(role, principal, on, kind=kind or _kind_of(client, principal))
    held = {"principal": principal, "role": role, "on": on, "assigned": False}
    say(held, f"{principal} does not hold {role} on {on} any more, itself", as_json=as_json)


def activate(principal: Name, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Let the keys of a principal open again what they did."""
    with opened(load_config(api_url=api_url)) as client:
        client.set_active(principal, True)
    say({"principal": principal, "is_active": True}, f"keys of {principal} are valid", as_json=as_json)


def deactivate(principal: Name, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Let the keys of a principal open nothing."""
    with opened(load_config(api_url=api_url)) as client:
        client.set_active(principal, False)
    say({"principal": principal, "is_active": False}, f"keys of {principal} open nothing", as_json=as_json)


def _kind_of(client: ThymeClient, principal: str) -> str:
    kinds = {str(each["kind"]) for each in client.principals() if principal in (each["id"], each["name"])}
    if not kinds:
        raise NotFound(f"there is no principal {principal!r}")
    if len(kinds) > 1:
        raise NotFound(f"{principal!r} is the name of several: {', '.join(sorted(kinds))}; say --kind")
    return kinds.pop()


def _row(principal: dict[str, Any]) -> list[str]:
    return [
        str(principal["name"]),
        str(principal["kind"]) + ("" if principal["is_active"] else ", not active"),
        ", ".join(principal["members"]),
        ", ".join(_held(role) for role in principal["roles"]),
        str(principal["id"]),
    ]


def _held(role: dict[str, Any]) -> str:
    kind = {"secret_scope": "scope"}.get(role["resource_type"], role["resource_type"])
    place = f"{kind}:{role['resource_id']}" if role["resource_id"] else kind
    return f"{role['role']} on {place}" + (f" through {role['group']}" if role["group"] else "")
