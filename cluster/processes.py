"""Owning operating-system processes: start them detached, find them again, stop exactly them.

Every process of a cluster carries two environment variables, its cluster's id and the name of the part
it belongs to. Children inherit both, so a Ray worker six generations down is found by the same mark as
the process we started. That is how `thyme down` leaves nothing behind without `ray stop`, which ends
every Ray process of the machine, other people's included.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import structlog
from pydantic import BaseModel, ConfigDict

CLUSTER_MARK = "THYME_CLUSTER_ID"
PART_MARK = "THYME_CLUSTER_PART"

# Below Linux's ephemeral range (32768 up): a port remembered across restarts is then never
# the local end of somebody's outgoing connection when we want it back.
_PORT_RANGE = (20_000, 31_999)
# A process's create time is kept by the kernel in ticks of 10 ms.
_SAME_BIRTH_S = 0.05
# Allocations less frees before the young are looked through, and such passes before older ones are.
_COLLECTED_AFTER = (100_000, 50, 100)
# Passes between two requests or steps before older ones are looked through: of ten a second, an hour's. Python counts
# them as its own, and its own limit lies above: a pass in the middle of a step looks through the young alone.
_PASSES_BETWEEN = 36_000
_log = structlog.get_logger("thyme.cluster")
# Our children that run, kept from the garbage collector: Python warns of a Popen dropped while its process runs on.
_spawned: list[subprocess.Popen[bytes]] = []


class Owned(BaseModel):
    """A process we started, told apart from a later one of the same id by its create time (epoch seconds)."""

    model_config = ConfigDict(frozen=True)

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> Owned:
        """The process running under ``pid`` now; raises ``psutil.NoSuchProcess`` if there is none."""
        return cls(pid=pid, created=psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The live process, or ``None`` when it is gone, a zombie, or its id was given to another."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.created) < _SAME_BIRTH_S
            return found if same and is_live(found) else None
        except psutil.NoSuchProcess:
            return None


class PortHolder(NamedTuple):
    """Who listens on a port; ``pid`` is ``None`` when the system does not let us see it."""

    port: int
    pid: int | None
    command: str

    def __str__(self) -> str:
        who = f"process {self.pid} ({self.command})" if self.pid else "a process of another user"
        return f"port {self.port} is already taken by {who}"


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log: Path, *, cwd: Path, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own, so that it outlives us; its output is appended to ``log``."""
    with log.open("ab") as output:
        child = subprocess.Popen(  # noqa: S603  # the commands are ours
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    _spawned[:] = [*(other for other in _spawned if other.poll() is None), child]
    return child


def begin_session(niceness: int = 0) -> None:
    """Put this process into a session of its own, away from whoever started it.

    Linux shares a processor between sessions first (autogroup, on by default on desktops and many servers), and within
    one between its processes: a replica in its raylet's session, with ten workers, gets a twelfth of the session's
    part, and niceness means nothing beyond it. So the session is made nice too.

    Args:
        niceness: how far it gives way to others, 0 to 19.
    """
    if not _leads_session():
        _log.warning("session_shared", pid=os.getpid(), session=os.getsid(0))
    if niceness:
        os.nice(niceness)
        if os.getsid(0) == os.getpid():
            with suppress(OSError):  # no autogroup here
                Path("/proc/self/autogroup").write_text(str(niceness))


def collect_seldom(*, between: bool = False) -> None:
    """Have Python look for cycles of garbage rarely, and never among what exists now, as long as the process lives.

    What a request or a record leaves goes by count; cycles are few. At the usual thresholds, looking through millions
    of small tuples took a third of the time of folding and a quarter of that of storing query runs, and of a replica
    that keeps rows between reads a pass over young objects took up to 17 ms several times a minute, a full one 81 ms.

    ``between``: :func:`collect_between` will be called often.
    """
    gc.collect()
    gc.freeze()
    young, middle, old = _COLLECTED_AFTER
    gc.set_threshold(young, 2 * _PASSES_BETWEEN if between else middle, old)


def collect_between() -> None:
    """Look for cycles among what came since the last call; for a moment when nothing waits for it, and often.

    :func:`collect_seldom` leaves it to whichever allocation is one too many. What is counted for that are allocations
    less frees, also of older objects: of a replica or a worker that drops as much as it makes, hundreds of thousands
    are young by then. Passes were measured to stop a replica for up to 130 ms, and workers for up to 660, five of them
    at the same moment since they fold the same events. Called between, each looks through what the last step left:
    5,000 objects take 0.5 ms.
    """
    gc.collect(1 if gc.get_count()[1] >= _PASSES_BETWEEN else 0)


def _leads_session() -> bool:
    """Lead a session; False where the system does not let this process, whose group has others in it for example."""
    if os.getsid(0) == os.getpid():
        return True
    try:
        if os.getpgid(0) == os.getpid():
            # The leader of a process group may begin no session, and Ray makes every worker one.
            os.setpgid(0, os.getpgid(os.getppid()))
        os.setsid()
    except PermissionError:
        with suppress(PermissionError):
            os.setpgid(0, 0)
        return False
    return True


def is_live(process: psutil.Process) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def marked(cluster_id: str, part: str | None = None) -> list[psutil.Process]:
    """Every live process that carries the cluster's mark, of one part or of all."""
    found = []
    for process in psutil.process_iter():
        marks = _marks(process)
        if marks.get(CLUSTER_MARK) == cluster_id and part in (None, marks.get(PART_MARK)):
            found.append(process)
    return found


def part_of(process: psutil.Process) -> str:
    """The part the process belongs to; empty when it is none of ours."""
    return _marks(process).get(PART_MARK, "")


def stop(find: Callable[[], list[psutil.Process]], grace_s: float) -> list[psutil.Process]:
    """End the processes ``find`` names: SIGTERM, SIGKILL after ``grace_s``; returns what :func:`kill` does."""
    ask_to_end(find(), grace_s)
    return kill(find)


def ask_to_end(processes: Iterable[psutil.Process], grace_s: float) -> bool:
    """Send SIGTERM; whether all are gone within ``grace_s``."""
    asked = list(processes)
    _signal(asked, signal.SIGTERM)
    return wait_until(lambda: not any(is_live(process) for process in asked), grace_s)


def kill(find: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    """Send SIGKILL to what ``find`` names, again and again, for it may have spawned more meanwhile.

    Returns those that survived for ten seconds (in an uninterruptible call), normally none.
    """
    left: list[psutil.Process] = []

    def none_left() -> bool:
        left[:] = find()
        _signal(left, signal.SIGKILL)
        return not left

    wait_until(none_left, 10.0)
    return left


def wait_until(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.05) -> bool:
    """Poll ``condition`` until it holds; ``False`` when the deadline passes first."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(every_s)
    return True


def port_holder(host: str, port: int) -> PortHolder | None:
    """Who listens on ``port``, or ``None`` when it can be bound."""
    if _can_bind(host, port):
        return None
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:2] == (port,):
            return PortHolder(port, connection.pid, _command(connection.pid))
    return PortHolder(port, None, "")


def are_let_go(ports: Iterable[int]) -> bool:
    """Whether nobody who is gone still listens on one of them.

    A process that was killed is gone before its last thread has closed its sockets: for some moments a port has a
    listener without a process, and cannot be bound. Before that it has given up its memory, our marks with it, and
    still holds its sockets; on a full machine for seconds.
    """
    wanted = set(ports)
    listening = (each for each in psutil.net_connections(kind="tcp") if each.status == psutil.CONN_LISTEN)
    return not any(wanted.intersection(each.laddr[1:2]) and _is_ending(each.pid) for each in listening)


def free_port(taken: Iterable[int] = ()) -> int:
    """A loopback port nobody listens on, chosen at random so that two clusters starting at once rarely meet."""
    avoid = set(taken)
    while True:
        port = random.randint(*_PORT_RANGE)  # noqa: S311  # not a secret
        if port not in avoid and _can_bind("127.0.0.1", port):
            return port


def _marks(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if is_live(process) else {}
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return {}  # gone, another user's, or (OSError) a kernel thread


def _is_ending(pid: int | None) -> bool:
    """Whether the process has no memory any more, an environment least of all."""
    try:
        return pid is None or not psutil.Process(pid).environ()
    except psutil.AccessDenied:
        return False
    except psutil.NoSuchProcess:
        return True


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        if process.pid == os.getpid():
            continue
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _can_bind(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without SO_REUSEPORT, or a port shared by that flag would look free: it binds silently.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _command(pid: int | None) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())[:160] if pid else ""
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""
