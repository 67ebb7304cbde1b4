"""Refuses query parameters that a route does not take: a misspelt filter would silently give everything."""

from __future__ import annotations

from fastapi import Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.params import Query
from fastapi.routing import APIRoute

from featurelib.errors import InvalidRequest

# Whoever delivers to a webhook may have an address with a token or a name of their own in it.
_OTHERS_ADDRESSES = "/api/v1/webhooks/"
_SHOWN = 60


async def known_parameters(request: Request) -> None:
    """Let a request pass whose query names what its route takes, each once; a dependency of every route.

    Raises:
        InvalidRequest: names the parameter, and those that are taken.
    """
    given = [name for name, _ in request.query_params.multi_items()]
    if not given or request.url.path.startswith(_OTHERS_ADDRESSES):
        return
    accepted = _accepted(request.scope["route"])
    strange = next((name for name in given if name not in accepted), None)
    if strange is not None:
        taken = f"accepted: {', '.join(accepted)}" if accepted else "this route takes none"
        raise InvalidRequest(f"{strange[:_SHOWN]}: no such parameter; {taken}")
    if len(set(given)) < len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise InvalidRequest(f"{twice}: given more than once")


def _accepted(route: APIRoute) -> tuple[str, ...]:
    fields = get_flat_params(route.dependant)
    return tuple(sorted(field.alias for field in fields if isinstance(field.field_info, Query)))
