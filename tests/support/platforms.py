"""A whole platform with its real workload, in a home of its own and on free ports."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from cluster.layout import Layout
from cluster.processes import free_port, marked
from cluster.state import read_state
from featurelib import Config, ThymeClient
from featurelib.settings import Settings, load_settings


class Platform:
    """``thyme up`` with a data directory, a home and ports that nobody else uses."""

    def __init__(self, home: Path) -> None:
        ports: list[int] = []
        for _ in range(3):
            ports.append(free_port(ports))
        self.home = home
        self.ports = ports
        self.data = home / "platform"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("THYME_", "RAY_"))},
            "HOME": str(home),
            "THYME_DATA_DIR": str(self.data),
            "THYME_SERVING__QUERY_PORT": str(ports[0]),
            "THYME_SERVING__DEFINITION_PORT": str(ports[1]),
            "THYME_CLUSTER__DASHBOARD_PORT": str(ports[2]),
            # One process less; where it is what is tried, it is asked for.
            "THYME_MONITOR__CONSISTENCY_EVERY_S": "0",
            "THYME_MONITOR__STATISTICS_EVERY_S": "0",
            "THYME_ARCHIVE__DERIVED_EVERY_S": "0",
        }

    @property
    def settings(self) -> Settings:
        """The settings its processes run with."""
        serving = {"query_port": self.ports[0], "definition_port": self.ports[1]}
        return load_settings(data_dir=self.data, serving=serving, cluster={"dashboard_port": self.ports[2]})

    @property
    def layout(self) -> Layout:
        """Where it keeps things."""
        return Layout(self.settings)

    def thyme(self, *arguments: str) -> str:
        """Run the CLI as a user would; returns its standard output."""
        done = subprocess.run(
            [self.binary("thyme"), *arguments], env=self.environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """It is up while the block runs; nothing of it is left behind."""
        try:
            self.thyme("up")
            yield
        finally:
            self.thyme("down")
        assert self.left_behind() == []

    @staticmethod
    def binary(name: str) -> str:
        """A command of the environment these tests run in."""
        return str(Path(sys.executable).parent / name)

    def client(self) -> ThymeClient:
        """A client with the key of the first start."""
        key = (self.data / "secrets" / "admin-key").read_text()
        host = "http://127.0.0.1"
        return ThymeClient(
            Config(
                api_base=f"{host}:{self.ports[1]}",
                query_url=f"{host}:{self.ports[0]}",
                api_key=key,
                api_url=f"{host}:{self.ports[1]}/api/v1/commit",
            )
        )

    def is_up(self) -> bool:
        """Whether its state file says where things are."""
        return read_state(self.layout.state_file) is not None

    def online_url(self) -> str:
        """URL of its online store."""
        state = read_state(self.layout.state_file)
        assert state is not None
        return self.layout.online_url(state.ports)

    def processes(self, title: str, part: str | None = None) -> list[psutil.Process]:
        """Its processes whose title begins with ``title``."""
        found = []
        for process in marked(self.layout.id, part):
            try:
                name = process.name() + " " + " ".join(process.cmdline())
            except psutil.Error:
                continue
            if title in name:
                found.append(process)
        return found

    def kill(self, title: str, part: str | None = None) -> int:
        """SIGKILL for its processes so titled; returns how many it reached. One may end meanwhile, by itself."""
        reached = 0
        for process in self.processes(title, part):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                reached += 1
        return reached

    def left_behind(self) -> list[str]:
        """Processes, and listening ports with who holds them, that are still there."""
        listening = (each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN)
        held = [f"port {each.laddr.port} of process {each.pid}" for each in listening if each.laddr.port in self.ports]
        return [str(process) for process in marked(self.layout.id)] + held
