"""Numbered migrations of the registry's schema, from the first table on.

``versions/vNNNN_<what>.py`` has revision ``"NNNN"`` and follows the one before; there are no gaps
and no branches. A migration that was released is never edited. They run from code only, so the
working directory and an ``alembic.ini`` play no part.
"""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from featurelib.errors import CorruptState

# Alembic keeps the migration under way in module globals, so one process runs one at a time.
_ONE_AT_A_TIME = threading.Lock()


def config() -> Config:
    """Alembic's view of this folder."""
    settings = Config()
    # The value is read through configparser, to which a per cent sign is special.
    settings.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    settings.set_main_option("path_separator", "os")
    return settings


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the database to ``revision``, inside the transaction the connection is in.

    Raises:
        CorruptState: the database has a revision this version of the code does not know.
    """
    settings = config()
    settings.attributes["connection"] = connection
    with _ONE_AT_A_TIME:
        try:
            command.upgrade(settings, revision)
        except CommandError as error:
            raise CorruptState(f"the registry was written by a newer version of the platform ({error})") from error


def revisions() -> list[str]:
    """Every revision, oldest first."""
    walked = ScriptDirectory.from_config(config()).walk_revisions()
    return [script.revision for script in walked][::-1]
