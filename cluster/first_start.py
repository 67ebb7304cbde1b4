"""``python -m cluster.first_start``: make the registry ready for use, and hand the user a key.

Runs at every `thyme up`, in a process of its own so that the watcher never loads a database library. Idempotent: the
key is made when the registry has none, the credentials file is otherwise only kept true to the ports.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cluster.layout import Layout
from cluster.parts import service_urls
from cluster.state import write_whole
from featurelib.clock import SystemClock
from featurelib.settings import Settings, load_settings


def credentials_path() -> Path:
    """Where the CLI and the client look for the key."""
    return Path.home() / ".thyme" / "credentials"


def first_start(settings: Settings) -> None:
    """Migrate the registry, make the first admin key if it has none, and publish the credentials file.

    The key is kept in the data directory too: the file in the home directory belongs to whichever cluster
    was started last, and the registry knows only digests.
    """
    from featurelib.stores.registry import Registry  # loads SQLAlchemy

    kept = Layout(settings).secret_path("admin-key")
    clock = SystemClock()
    registry = Registry(settings.registry_url, clock)
    try:
        registry.migrate()
        if not registry.keys():
            write_whole(kept, registry.create_key("admin", "first start")[1])
        valid = {key.fingerprint for key in registry.keys() if key.valid_at(clock.now())}  # noqa: SIM118  # not a dict
    finally:
        registry.close()
    key = kept.read_text() if kept.exists() else ""
    if fingerprint(key) in valid:
        write_credentials(settings, key)


def write_credentials(settings: Settings, key: str) -> None:
    """Put key and URLs where the CLI and the client look; readable by their owner only."""
    path = credentials_path()
    urls = service_urls(Layout(settings))
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_whole(path, json.dumps({"api_key": key, "api_base": urls["definition"], "query_url": urls["query"]}) + "\n")


def fingerprint(key: str) -> str:
    """The first eight hex digits of the key's SHA-256, by which the registry names it."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


if __name__ == "__main__":
    first_start(load_settings())
