"""Connectors: how records come in from outside systems. One contract, one file per system."""

from __future__ import annotations

from featurelib.clock import Clock
from featurelib.connectors.contract import Malformed, Position, Source, SourceBatch
from featurelib.connectors.files import FilesSource
from featurelib.definitions import SourceDef
from featurelib.errors import SourceError

__all__ = ["Malformed", "Position", "Source", "SourceBatch", "connect"]


def connect(source: SourceDef, batch_rows: int, clock: Clock) -> Source:
    """The connector a source definition names; batches hold at most ``batch_rows`` records.

    Raises:
        SourceError: there is no connector of that type, or its settings are wrong.
    """
    match source.connector.type:
        case "files":
            return FilesSource(source.connector.config, source.cursor, batch_rows, clock)
        case other:
            message = f"source of {source.dataset}: there is no connector of type {other!r}; there is: files"
            raise SourceError(message)
