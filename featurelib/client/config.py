"""Where the platform is, which key opens it, and how long to wait for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featurelib.errors import ConfigError

COMMIT_PATH = "/api/v1/commit"
_TEXTS = ("api_url", "api_base", "query_url", "frontend_url", "api_key")
_NUMBERS = ("connect_timeout_s", "read_timeout_s", "attempts")
_PRIVATE = 0o600


@dataclass(frozen=True)
class Config:
    """Where the platform is, which key opens it, and how long a call may take.

    ``api_url`` is the whole commit URL, ``api_base`` the definition service, ``query_url`` the query server. A call
    that may be repeated is sent up to ``attempts`` times.
    """

    api_url: str = "http://localhost:8080/api/v1/commit"
    api_base: str = "http://localhost:8080"
    query_url: str = "http://localhost:8081"
    frontend_url: str = ""
    api_key: str = ""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    attempts: int = 3

    @classmethod
    def load(cls, path: str | Path | None = None) -> Config:
        """Environment, then file, then ``~/.thyme/credentials``, then the defaults.

        Args:
            path: a YAML file; left out, ``.thyme.yaml`` here, else ``~/.thyme.yaml``.

        Raises:
            ConfigError: a file is named and missing, or cannot be read, or a number is none.
        """
        merged: dict[str, str] = {}
        for layer in (_credentials(), _file(path), _environment()):
            # A base without a commit URL means the one below that base.
            if "api_base" in layer and "api_url" not in layer:
                merged["api_url"] = layer["api_base"].rstrip("/") + COMMIT_PATH
            merged.update(layer)
        values: dict[str, Any] = {
            name: _number(name, text) if name in _NUMBERS else text for name, text in merged.items()
        }
        return cls(**values)

    def with_overrides(self, **given: str | None) -> Config:
        """The same with every given non-empty text in place."""
        chosen: Mapping[str, Any] = {name: value for name, value in given.items() if value}
        return replace(self, **chosen)

    def auth_headers(self) -> dict[str, str]:
        """The header that carries the key, if there is one."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def query_run_url(self, run_id: str) -> str:
        """The page of a query run; empty without a front end."""
        return f"{self.frontend_url.rstrip('/')}/query-runs/{run_id}" if self.frontend_url else ""

    def __repr__(self) -> str:
        key = "***" if self.api_key else ""
        return f"Config(api_base={self.api_base!r}, query_url={self.query_url!r}, api_key={key!r})"


def credentials_path() -> Path:
    """The file in which ``thyme login``, or the first start of a platform, leaves its key."""
    return Path.home() / ".thyme" / "credentials"


def save_credentials(api_key: str, api_base: str, query_url: str) -> Path:
    """Keep a key and where it opens; the file is readable by its owner alone, from its first byte on."""
    path = credentials_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".new")
    whole.unlink(missing_ok=True)
    tree = {"api_key": api_key, "api_base": base_of(api_base), "query_url": base_of(query_url)}
    with os.fdopen(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE), "w", encoding="utf-8") as file:
        json.dump(tree, file, indent=2)
    whole.replace(path)
    return path


def forget_credentials() -> bool:
    """Remove the credentials file; whether there was one."""
    path = credentials_path()
    there = path.exists()
    path.unlink(missing_ok=True)
    return there


def base_of(url: str) -> str:
    """A base URL; the whole commit URL is taken for its base, since one variable is used for both."""
    return url.rstrip("/").removesuffix(COMMIT_PATH)


def _number(name: str, text: str) -> Any:
    kind = int if name == "attempts" else float
    try:
        value = kind(text)
    except ValueError:
        value = kind(0)
    if not value > 0:
        message = f"{name} is {text!r}; it is a number above 0"
        raise ConfigError(message)
    return value


def _environment() -> dict[str, str]:
    found = {name: os.environ.get(f"THYME_{name.upper()}", "") for name in (*_TEXTS, *_NUMBERS)}
    return {name: value for name, value in found.items() if value}


def _credentials() -> dict[str, str]:
    path = credentials_path()
    if not path.exists():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path}: {error}"
        raise ConfigError(message) from None
    known = ("api_key", "api_base", "query_url")
    return {name: str(tree[name]) for name in known if isinstance(tree, dict) and tree.get(name)}


def _file(path: str | Path | None) -> dict[str, str]:
    candidates = [Path(path)] if path else [Path(".thyme.yaml"), Path.home() / ".thyme.yaml"]
    chosen = next((each for each in candidates if each.exists()), None)
    if chosen is None:
        if path is None:
            return {}
        message = f"{path} does not exist"
        raise ConfigError(message)
    try:
        tree = dict(_settings(chosen.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        message = f"{chosen}: {error}"
        raise ConfigError(message) from None
    nested = {"definition_service.url": "api_base", "query_server.url": "query_url"}
    named = {nested.get(name, name): value for name, value in tree.items() if value}
    unknown = sorted(named.keys() - {*_TEXTS, *_NUMBERS})
    if unknown:
        message = f"{chosen}: unknown key {unknown[0]!r}"
        raise ConfigError(message)
    return named


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """The scalars of a YAML mapping at most one level deep, which is all this file holds; ``outer.inner`` for nested.

    Raises:
        ValueError: naming the first line that is anything else.
    """
    outer = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split(" #")[0].rstrip()
        if not line or line.lstrip().startswith("#") or line == "---":
            continue
        name, colon, value = line.partition(":")
        nested = line[0] in " \t"
        if not colon or (value and not value.startswith(" ")) or (nested and not outer):
            message = f"line {number} is not `name: value`"
            raise ValueError(message)
        if not value.strip() and not nested:
            outer = name.strip()
            continue
        outer = outer if nested else ""
        yield (f"{outer}.{name.strip()}" if nested else name.strip()), value.strip().strip("\"'")
