"""Where one cluster lives: its directories, ports, secrets, and the environment its processes get.

Everything that is kept lies below ``settings.data_dir``. Unix sockets and Ray's session directories lie
in a short directory of our own below the system's temporary one, because a unix socket's path may have 107 bytes only;
`down` removes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SecretStr

from cluster.processes import CLUSTER_MARK, PART_MARK, free_port
from featurelib.errors import ClusterError
from featurelib.settings import Settings

# Addresses of Ray's head and of the worker raylet. Not 127.0.0.1: Ray replaces that by the machine's outward
# address, which a laptop changes with its network. Two, because a driver can name the raylet it joins by address only.
HEAD_ADDRESS = "127.0.0.2"
NODE_ADDRESS = "127.0.0.3"

# <short>/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.1 must stay within 107 bytes.
_MAX_SHORT = 40

# Variables of connectors are THYME_<CONNECTOR>_<FIELD> (featurelib/sources.py); no setting's begins like one.
_CONNECTORS = ("BIGQUERY", "ICEBERG", "KAFKA", "KINESIS", "POSTGRES", "S3", "SNOWFLAKE", "WEBHOOK")
_CONNECTORS_OWN = tuple(f"THYME_{connector}_" for connector in _CONNECTORS)

_SOURCES = str(Path(__file__).resolve().parent.parent)


class Ports(BaseModel):
    """Loopback ports of the cluster's own servers; chosen once, kept across restarts."""

    model_config = ConfigDict(frozen=True)

    online: int
    gcs_store: int
    gcs: int
    head_agent: int
    node_agent: int

    @classmethod
    def choose(cls) -> Ports:
        """Five free ports."""
        chosen: list[int] = []
        for _ in cls.model_fields:
            chosen.append(free_port(chosen))
        return cls(**dict(zip(cls.model_fields, chosen, strict=True)))


class Layout:
    """The names of everything in one cluster; a value computed from its settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.data = settings.data_dir.expanduser().resolve()
        self.id = hashlib.sha256(str(self.data).encode()).hexdigest()[:10]
        self.run = self.data / "run"
        self.logs = self.data / "logs"
        self.state_file = self.run / "state.json"
        self.watcher_file = self.run / "watcher.json"
        self.watcher_lock = self.run / "watcher.lock"
        self.command_lock = self.run / "command.lock"

    def create(self) -> None:
        """Make the directories; only their owner may enter them."""
        for directory in (self.data, self.run, self.logs, self.data / "secrets"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _private_directory(self.short)

    @cached_property
    def short(self) -> Path:
        """The short directory, one per user and cluster."""
        name = f"thyme-{os.getuid()}-{self.id}"
        usual = Path(tempfile.gettempdir())
        root = usual if len(str(usual / name)) <= _MAX_SHORT else Path("/tmp")  # noqa: S108  # checked to be ours
        return root / name

    @property
    def listener_socket(self) -> Path:
        """Unix socket of the holder of the listening sockets."""
        return self.short / "listen.sock"

    @property
    def online_socket(self) -> Path:
        """Unix socket of the embedded online store."""
        return self.short / "online.sock"

    @property
    def embedded_online(self) -> bool:
        """Whether the online store is ours to run."""
        return not self.settings.online.redis_url.get_secret_value()

    @property
    def ray_dir(self) -> Path:
        """Temporary directory of both raylets: were they apart, Ray would look for job logs in the wrong one."""
        return self.short / "ray"

    def secret(self, name: str) -> str:
        """The secret ``name``, generated at first use into a file only its owner reads."""
        path = self.secret_path(name)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return path.read_text().strip()
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        return path.read_text().strip()

    def secret_path(self, name: str) -> Path:
        """The file of a secret."""
        return self.data / "secrets" / name

    def online_url(self, ports: Ports) -> str:
        """URL of the online store, ours or the one configured."""
        if not self.embedded_online:
            return self.settings.online.redis_url.get_secret_value()
        return f"redis://:{self.secret('online')}@127.0.0.1:{ports.online}/0"

    def gcs_address(self, ports: Ports) -> str:
        """Address of Ray's control store, as `ray.init` takes it."""
        return f"{HEAD_ADDRESS}:{ports.gcs}"

    @property
    def dashboard_url(self) -> str:
        """The Ray dashboard."""
        return f"http://127.0.0.1:{self.settings.cluster.dashboard_port}"

    def environment(self, part: str, ports: Ports | None = None) -> dict[str, str]:
        """Environment of a process of ``part``: our settings in full, Ray's switches, the two marks.

        With ``ports`` the online store's URL is the real one; without (the watcher), the configured one.

        Inherited ``RAY_*`` and ``THYME_*`` variables are dropped: a second cluster's address or token in
        the caller's shell must not leak into this one. Those of connectors stay, as any other variable does: a
        ``Secret(env=…)`` may name them.
        """
        kept = {name: value for name, value in os.environ.items() if _is_kept(name)}
        paths = [_SOURCES, *filter(None, [kept.get("PYTHONPATH")])]
        return {
            **kept,
            **settings_environment(self.settings),
            **self._ray_environment(),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(paths),
            "THYME_DATA_DIR": str(self.data),
            **({"THYME_ONLINE__REDIS_URL": self.online_url(ports)} if ports else {}),
            "THYME_LISTENER_SOCKET": str(self.listener_socket),
            CLUSTER_MARK: self.id,
            PART_MARK: part,
        }

    def ray_client_environment(self) -> dict[str, str]:
        """What Ray's own commands (`ray job submit`, `serve status`) need to reach this cluster."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.secret_path("ray-token")),
            "RAY_API_SERVER_ADDRESS": self.dashboard_url,
            "RAY_DASHBOARD_ADDRESS": self.dashboard_url,
        }

    def _ray_environment(self) -> dict[str, str]:
        self.secret("ray-token")
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.secret_path("ray-token")),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Worker raylets and drivers give up on a lost head after 60 s by default; the watcher brings it
            # back within ten, but a machine that swaps may take minutes.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
            # Workers serve requests; Ray's default of 15 starves them first on a busy machine.
            "RAY_worker_niceness": "0",
            # Ray's processes rename themselves in place; without this they overwrite the marks.
            "SPT_NOENV": "1",
            "RAY_START_HOOK": "cluster.ray_hook.without_client_server",
        }


def _is_kept(name: str) -> bool:
    return name.startswith(_CONNECTORS_OWN) or not name.startswith(("RAY_", "THYME_"))


def settings_environment(settings: Settings) -> dict[str, str]:
    """The settings as the environment variables that read back to the same settings."""
    variables: dict[str, str] = {}
    for group, value in settings:
        if isinstance(value, BaseModel):
            # No text reads back to `None`; where it is the value, it is the default.
            given = {field: inner for field, inner in value if inner is not None}
            variables |= {f"THYME_{group}__{field}".upper(): _text(inner) for field, inner in given.items()}
        else:
            variables[f"THYME_{group}".upper()] = _text(value)
    return variables


def settings_digests(settings: Settings) -> dict[str, str]:
    """A digest of every setting by its variable's name: enough to see a change, without keeping a password.

    Leaves out the two that say which cluster it is; their processes get them in a form of our own.
    """
    found = settings_environment(settings.model_copy(update={"data_dir": "", "listener_socket": ""}))
    return {name: hashlib.sha256(value.encode()).hexdigest()[:16] for name, value in found.items()}


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return json.dumps(value)
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _private_directory(path: Path) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        message = f"{path} exists and is not a directory of ours alone; remove it"
        raise ClusterError(message)
