"""Where golden cases run: in process, or against a running platform over HTTP."""

from __future__ import annotations

import importlib.util
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Protocol

from featurelib import ThymeClient
from featurelib.clock import Instant, format_instant
from featurelib.compile import compile_module
from featurelib.errors import DefinitionError, NotFound, ThymeError
from featurelib.testing import MockContext
from tests.support.semantics_modules import NotOffered, first_line

_PLANNED_S = 60.0
_POLL_S = 0.1
_ROWS_PER_CALL = 2_000

Row = dict[str, Any]


class Session(Protocol):
    """A platform with one case's definitions in it."""

    def send(self, dataset: str, events: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Accept records; gives the expectation violations, where the platform tells them at once."""
        ...

    def settle(self) -> None:
        """Wait until everything sent is applied."""
        ...

    def read(self, featureset: str, key: str, at: Instant) -> Row:
        """A featureset's row of one entity at an instant."""
        ...

    def lookup(self, dataset: str, key: str, at: Instant) -> Row:
        """A dataset's row of one key at an instant; empty for an unknown key."""
        ...

    def late(self, dataset: str) -> int:
        """How many records of a dataset came too late."""
        ...

    def violations(self, dataset: str) -> dict[str, int]:
        """Expectation violations that the platform told in its events, by ``type:column``."""
        ...


class Platform(Protocol):
    """Takes a case's definitions."""

    def open(self, module: str) -> Session:
        """Commit the text of a module.

        Raises:
            NotOffered: the platform refuses it.
        """
        ...

    def prefix(self, case: str) -> str:
        """What the class names of a case begin with."""
        ...


class InProcess:
    """The real engine, no services."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened = 0

    def prefix(self, case: str) -> str:
        """The case's id: every session has definitions of its own."""
        return case

    def open(self, module: str) -> Session:
        """A context of its own for each case."""
        self._opened += 1
        return _MockSession(_loaded(self._folder / f"case_{self._opened}.py", module))


class _MockSession:
    def __init__(self, module: ModuleType) -> None:
        self._module = module
        try:
            self._context = MockContext(module)
        except DefinitionError as error:
            raise NotOffered(f"refused: {first_line(error)}") from error

    def send(self, dataset: str, events: Sequence[Mapping[str, Any]]) -> list[Any]:
        return list(self._context.add_events(getattr(self._module, dataset), [dict(event) for event in events]))

    def settle(self) -> None:
        """Records are applied as they are added."""

    def read(self, featureset: str, key: str, at: Instant) -> Row:
        return dict(self._context.query(getattr(self._module, featureset), key, at=format_instant(at)))

    def lookup(self, dataset: str, key: str, at: Instant) -> Row:
        return dict(self._context.lookup(getattr(self._module, dataset), key, at=format_instant(at)) or {})

    def late(self, dataset: str) -> int:
        return len(self._context.late(getattr(self._module, dataset)))

    def violations(self, dataset: str) -> dict[str, int]:
        del dataset
        return {}


class Live:
    """A running platform: definitions get names of their own, so that runs do not meet.

    Each case is a module, and a committed pipeline runs for ever: use a platform that is thrown away afterwards.
    """

    def __init__(self, folder: Path, client: ThymeClient) -> None:
        self._folder = folder
        self._client = client
        self._run = secrets.token_hex(3)
        self._opened = 0

    def prefix(self, case: str) -> str:
        """The case's id, made unique for this run and session."""
        self._opened += 1
        return f"{case}_{self._run}_{self._opened}"

    def open(self, module: str) -> Session:
        """Commit."""
        path = self._folder / f"live_{self._opened}.py"
        path.write_text(module, encoding="utf-8")
        try:
            receipt = self._client.commit(compile_module(path))
        except DefinitionError as error:
            raise NotOffered(f"refused: {first_line(error)}") from error
        self._await_plans(receipt.commit_id)
        return _LiveSession(self._client)

    def _await_plans(self, commit_id: str) -> None:
        """Return once reads are answered with the plans of this commit, as the run of a probing read says."""
        deadline = time.monotonic() + _PLANNED_S
        while time.monotonic() < deadline:
            run_id = self._client.lookup("Nothing", "nobody").query_run_id
            try:
                if run_id and self._client.query_run(run_id)["definition"] == commit_id:
                    return
            except NotFound:  # the run is written behind the answer
                pass
            time.sleep(_POLL_S)
        raise TimeoutError(f"no replica reads by commit {commit_id} after {_PLANNED_S:.0f} s")


class _LiveSession:
    def __init__(self, client: ThymeClient) -> None:
        self._client = client

    def send(self, dataset: str, events: Sequence[Mapping[str, Any]]) -> list[Any]:
        for start in range(0, len(events), _ROWS_PER_CALL):
            self._client.log(dataset, [dict(event) for event in events[start : start + _ROWS_PER_CALL]])
        return []

    def settle(self) -> None:
        """A read of an instant folds what the log has accepted: no worker need have applied it."""

    def read(self, featureset: str, key: str, at: Instant) -> Row:
        found = self._client.query(featureset, key, timestamp=format_instant(at)).to_dict()
        return dict(found[0]) if found else {}

    def lookup(self, dataset: str, key: str, at: Instant) -> Row:
        found = self._client.lookup(dataset, key, timestamp=format_instant(at)).to_dict()
        return dict(found[0]) if found else {}

    def late(self, dataset: str) -> int:
        events = self._client.events(limit=1_000, event_type="late_records", subject=dataset)
        return sum(int(event.get("detail", {}).get("late", 0)) for event in events)

    def violations(self, dataset: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for event in self._client.events(limit=1_000, event_type="expectation_violation", subject=dataset):
            detail = event.get("detail") or {}
            rule = detail["expectation"]
            name = f"{rule['type'].removeprefix('column_values_')}:{rule['column']}"
            found[name] = found.get(name, 0) + int(detail["failed"])
        return found


def _loaded(path: Path, text: str) -> ModuleType:
    """Import a module's text as a user's module is imported."""
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (ThymeError, TypeError, ValueError, AttributeError, NameError, SyntaxError) as error:
        raise NotOffered(f"refused: {first_line(error)}") from error
    return module


def folder() -> TemporaryDirectory[str]:
    """Where the modules of a run are written."""
    return TemporaryDirectory(prefix="semantics-")
