"""Credentials of a connector: what a setting says is turned into the value itself, when the connector is made.

A value resolved here is handed to a driver and to nothing else: no message, event or repr may hold it.
"""

from __future__ import annotations

import os

from featurelib.errors import SourceError
from featurelib.secrets import SecretRef

Setting = SecretRef | str | int | float | bool | None
"""A setting of a connector, as its definition stores it."""

_OWN = ("THYME_", "RAY_")


def resolve(setting: Setting, what: str) -> str:
    """The value of a setting that may be a reference to a secret; empty when there is none.

    Args:
        setting: plain text, or a reference: the value itself (``literal``) or an environment variable (``env``) of
            the process that reads the source. Where the platform keeps the value, it was put in before.
        what: the setting as people know it, for messages: ``postgres source of Trip: password``.

    Raises:
        SourceError: the variable is not set or is a setting of the platform, or the reference is of a kind no process
            here can follow.
    """
    if not isinstance(setting, SecretRef):
        return "" if setting is None else str(setting)
    value = setting.value.get_secret_value()
    if setting.kind == "literal":
        return value
    if setting.kind == "env":
        return _from_environment(value, what)
    if setting.kind == "scope":
        message = f"{what} is the secret {value} of the platform, which puts it in only where it reads a source itself"
        raise SourceError(message)
    message = (
        f"{what} is Secret({setting.kind}=…), which needs a secret store, and none is connected; "
        "put the value into the environment of the workers and write Secret(env='<VARIABLE>')"
    )
    raise SourceError(message)


def _from_environment(variable: str, what: str) -> str:
    if _is_setting(variable):
        raise SourceError(
            f"{what} is Secret(env={variable!r}), a setting of the platform: no connector is given one, since whoever "
            "names the host that it is sent to could have it; choose another name"
        )
    value = os.environ.get(variable, "")
    if not value:
        message = (
            f"{what} is Secret(env={variable!r}), which the process that reads the source has not set; "
            "it has the environment `thyme up` was run in: set it there, then `thyme down` and `thyme up`"
        )
        if variable.startswith(_OWN):
            message += ". Most variables that begin so are the platform's own and not passed on: choose another name"
        raise SourceError(message)
    return value


def _is_setting(variable: str) -> bool:
    """Whether a variable is ``THYME_<GROUP>__<FIELD>``: the registry's password and the key of all secrets are."""
    return variable.startswith("THYME_") and "__" in variable
