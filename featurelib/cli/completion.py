"""Names that the shell completes, asked of the running platform; an empty list where it does not answer at once."""

from __future__ import annotations

from dataclasses import replace

from featurelib.errors import ThymeError

# Whoever presses the tabulator waits for no service.
_PATIENCE_S = 1.0


def featureset_names(incomplete: str) -> list[str]:
    """Committed featuresets that begin so."""
    return _names("/api/v1/featuresets", incomplete)


def dataset_names(incomplete: str) -> list[str]:
    """Committed datasets that begin so."""
    return _names("/api/v1/datasets", incomplete)


def _names(path: str, incomplete: str) -> list[str]:
    from featurelib.client import Config, ThymeClient

    try:
        config = replace(Config.load(), attempts=1, connect_timeout_s=_PATIENCE_S, read_timeout_s=_PATIENCE_S)
        with ThymeClient(config) as client:
            return sorted({name for name in client.names(path) if name.startswith(incomplete)})
    except ThymeError:
        return []
