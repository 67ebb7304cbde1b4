"""What is known of a running cluster, in one file the watcher writes and everyone else reads.

The file is replaced atomically, so a reader sees a whole state or the one before. The same `Board` is the
meeting place of the watcher's threads: each part's keeper writes its own line and waits on those it needs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.layout import Ports
from cluster.processes import Owned

PartState = Literal["waiting", "starting", "ready", "failed"]


class Workload(BaseModel):
    """What the cluster runs: the Serve config, the supervisor's command, and what to do before the first start."""

    model_config = ConfigDict(frozen=True)

    serve_config: Path
    supervisor: str
    first_start: str


class PartStatus(BaseModel):
    """One part of the cluster."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: PartState = "waiting"
    detail: str = ""
    """A word on what runs: process id, application, job."""
    error: str = ""
    """Why it does not run, or why nothing can be said of it."""
    since: float = 0.0
    """Epoch seconds of the last change of state."""
    seconds: float = 0.0
    """How long its last start took."""
    starts: int = 0
    """Times it was started; more than one means it was brought back."""
    failures: int = 0
    """Failed starts since it was last ready."""
    process: Owned | None = None
    generation: int = 0
    """Number of the last job of this part; names it."""


class ClusterState(BaseModel):
    """The state file."""

    model_config = ConfigDict(frozen=True)

    ports: Ports
    workload: Workload
    settings: dict[str, str]
    """Digest of every setting the processes were started with, by its variable's name."""
    parts: dict[str, PartStatus] = {}

    def unsure(self) -> ClusterState:
        """The same, with no part said to be ready: what a new watcher knows before it has looked."""
        parts = {name: part.model_copy(update={"state": "waiting"}) for name, part in self.parts.items()}
        return self.model_copy(update={"parts": parts})


def read_state(path: Path) -> ClusterState | None:
    """The state last written, or ``None`` when there is none this version can read."""
    try:
        return ClusterState.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_whole(path: Path, text: str) -> None:
    """Replace ``path`` atomically; readable by its owner only."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    fresh.replace(path)


class Board:
    """The watcher's shared, persisted view of every part."""

    def __init__(self, path: Path, state: ClusterState) -> None:
        self._path = path
        self._state = state
        self._changed = threading.Condition()

    @property
    def ports(self) -> Ports:
        """The cluster's own ports."""
        return self._state.ports

    @property
    def workload(self) -> Workload:
        """What the cluster runs."""
        return self._state.workload

    def part(self, name: str) -> PartStatus:
        """The last known status of ``name``."""
        return self._state.parts.get(name, PartStatus(name=name))

    def update(self, name: str, **changes: Any) -> PartStatus:
        """Change a part's line, persist it, wake everyone who waits."""
        with self._changed:
            before = self.part(name)
            if "state" in changes and changes["state"] != before.state:
                changes["since"] = time.time()
            after = before.model_copy(update=changes)
            if after != before:
                self._state = self._state.model_copy(update={"parts": {**self._state.parts, name: after}})
                write_whole(self._path, self._state.model_dump_json(indent=1))
                self._changed.notify_all()
            return after

    def doubt(self, names: Iterable[str]) -> None:
        """Call none of ``names`` ready any more, until their keepers have looked again."""
        with self._changed:
            for name in names:
                if self.part(name).state == "ready":
                    self.update(name, state="waiting")

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that are not ready."""
        return [name for name in names if self.part(name).state != "ready"]

    def wait_ready(self, names: Iterable[str], timeout_s: float) -> bool:
        """Return ``True`` as soon as all of ``names`` are ready, ``False`` after ``timeout_s``."""
        wanted = list(names)
        with self._changed:
            return self._changed.wait_for(lambda: not self.missing(wanted), timeout_s)
