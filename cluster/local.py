"""``up``, ``status`` and ``down`` of the cluster on this machine.

`up` starts the watcher unless one runs, and waits until it reports every part ready; the watcher does the
work, so an interrupted `up` leaves a cluster that completes itself. `down` ends the watcher, then every
process that carries the cluster's mark, and keeps the data.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.layout import Layout, settings_digests
from cluster.parts import service_urls, tail
from cluster.processes import (
    Owned,
    PortHolder,
    are_let_go,
    ask_to_end,
    kill,
    marked,
    part_of,
    port_holder,
    spawn,
    stop,
    wait_until,
)
from cluster.state import PartStatus, Workload, read_state, write_whole
from featurelib.errors import ClusterError, StoreUnavailable
from featurelib.settings import Settings

PLATFORM = Workload(
    serve_config=Path(__file__).resolve().parent.parent / "configs" / "serve.yaml",
    supervisor="python -m jobs.supervisor",
    first_start="python -m cluster.first_start",
)

_UP_DEADLINE_S = 180.0
# A part that failed this often in a row will not come up by waiting longer.
_HOPELESS = 3
_STORES = frozenset({"online", "gcs-store"})
_RAY_PROCESSES = frozenset({"ray", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent"})
_WATCHER_GRACE_S = 2.0
_WORKER_GRACE_S = 3.0
_STORE_GRACE_S = 5.0
_LET_GO_S = 30.0
_PARTS_EXPECTED = ("gcs-store", "head", "node", "registry", "listeners", "serve", "supervisor", "services")


class ClusterStatus(BaseModel):
    """What runs, as the watcher last saw it and as the process table says now."""

    model_config = ConfigDict(frozen=True)

    running: bool
    """Whether a watcher runs. Parts may run without one; nothing brings them back then."""
    watcher_pid: int | None
    parts: tuple[PartStatus, ...]
    data_dir: Path
    query_url: str
    definition_url: str
    dashboard_url: str

    @property
    def ready(self) -> bool:
        """Whether everything is up."""
        names = {part.name for part in self.parts if part.state == "ready"}
        return self.running and names.issuperset(_PARTS_EXPECTED) and len(names) == len(self.parts)


class Stopped(BaseModel):
    """What `down` did."""

    model_config = ConfigDict(frozen=True)

    processes: int
    seconds: float


def up(
    settings: Settings,
    *,
    workload: Workload = PLATFORM,
    on_change: Callable[[ClusterStatus], None] = lambda _: None,
    timeout_s: float = _UP_DEADLINE_S,
) -> ClusterStatus:
    """Start what does not run, and return when both services answer; ``on_change`` sees every step.

    Raises:
        ClusterError: it runs with other settings, or a port is taken (nothing was started); or a part did
            not come up (says why; the rest runs on, `up` again completes it, `down` ends it).
    """
    layout = Layout(settings)
    layout.create()
    with _one_command(layout):
        _refuse_other_settings(layout)
        if _watcher(layout) is None:
            _refuse_taken_ports(layout)
            _start_watcher(layout, workload)
        return _wait_ready(layout, on_change, timeout_s)


def status(settings: Settings) -> ClusterStatus:
    """What runs now."""
    return _status(Layout(settings))


def warnings(settings: Settings) -> list[str]:
    """How the running online store's server is set up otherwise than it should be; only a person can mend that."""
    from featurelib.stores.budget import server_warnings  # loads the Redis client, which only this needs

    layout = Layout(settings)
    state = read_state(layout.state_file)
    if state is None:
        return []
    try:
        return server_warnings(layout.online_url(state.ports), settings.online)
    except StoreUnavailable as error:
        return [str(error)]


def down(settings: Settings) -> Stopped:
    """End every process of the cluster, by id; its data stays. Fine when nothing runs.

    Raises:
        ClusterError: a process survived SIGKILL.
    """
    layout = Layout(settings)
    layout.create()
    begun = time.monotonic()
    with _one_command(layout):
        seen = _stop_everything(layout)
        # Or the next start would find a port taken, by nobody.
        wait_until(lambda: are_let_go(_ports(layout)), _LET_GO_S)
        _tidy(layout)
    return Stopped(processes=len(seen), seconds=round(time.monotonic() - begun, 2))


def _ports(layout: Layout) -> list[int]:
    state, serving = read_state(layout.state_file), layout.settings.serving
    own = [serving.query_port, serving.definition_port, layout.settings.cluster.dashboard_port]
    return [*own, *(state.ports.model_dump().values() if state is not None else ())]


def _start_watcher(layout: Layout, workload: Workload) -> None:
    layout.watcher_file.unlink(missing_ok=True)
    log = layout.logs / "watcher.out"
    child = spawn(
        [sys.executable, "-m", "cluster.watcher", workload.model_dump_json()],
        layout.environment("watcher"),
        log,
        cwd=layout.data,
    )
    wait_until(lambda: child.poll() is not None or _watcher(layout) is not None, 30.0)
    if _watcher(layout) is None:
        raise ClusterError(f"the watcher did not start; {log} ends with:\n{tail(log)}")


def _wait_ready(layout: Layout, on_change: Callable[[ClusterStatus], None], timeout_s: float) -> ClusterStatus:
    shown: ClusterStatus | None = None
    deadline = time.monotonic() + timeout_s
    while True:
        now = _status(layout)
        if now != shown:
            on_change(now)
            shown = now
        if now.ready:
            return now
        _refuse_hopeless(layout, now)
        if time.monotonic() > deadline:
            slow = ", ".join(f"{part.name} ({part.state})" for part in now.parts if part.state != "ready")
            raise ClusterError(f"not up after {timeout_s:.0f} s: {slow}; logs are in {layout.logs}")
        time.sleep(0.1)


def _refuse_hopeless(layout: Layout, now: ClusterStatus) -> None:
    if not now.running:
        out = layout.logs / "watcher.out"
        raise ClusterError(f"the watcher died; {out} ends with:\n{tail(out)}")
    for part in now.parts:
        if part.state == "failed" and part.failures >= _HOPELESS:
            raise ClusterError(f"{part.name} failed {part.failures} times: {part.error}")


def _status(layout: Layout) -> ClusterStatus:
    watcher = _watcher(layout)
    state = read_state(layout.state_file)
    urls = service_urls(layout)
    return ClusterStatus(
        running=watcher is not None,
        watcher_pid=watcher.pid if watcher else None,
        parts=tuple(state.parts.values()) if state else (),
        data_dir=layout.data,
        query_url=urls["query"],
        definition_url=urls["definition"],
        dashboard_url=layout.dashboard_url,
    )


def _watcher(layout: Layout) -> psutil.Process | None:
    try:
        return Owned.model_validate_json(layout.watcher_file.read_bytes()).process()
    except (FileNotFoundError, ValidationError):
        return None


def _refuse_other_settings(layout: Layout) -> None:
    """A running cluster keeps the settings it was started with; say which differ rather than ignore them."""
    state = read_state(layout.state_file)
    if state is None or not marked(layout.id):
        return
    asked = settings_digests(layout.settings)
    changed = sorted(
        name for name in asked.keys() | state.settings.keys() if asked.get(name) != state.settings.get(name)
    )
    if changed:
        raise ClusterError(f"it runs with other settings ({', '.join(changed)}); `thyme down` first, then `thyme up`")


def _refuse_taken_ports(layout: Layout) -> None:
    """Say which ports are taken and by whom, all at once; our own surviving processes may hold theirs."""
    serving, ours = layout.settings.serving, {process.pid for process in marked(layout.id)}
    wanted = [
        (serving.host, serving.query_port, "THYME_SERVING__QUERY_PORT"),
        (serving.host, serving.definition_port, "THYME_SERVING__DEFINITION_PORT"),
        ("127.0.0.1", layout.settings.cluster.dashboard_port, "THYME_CLUSTER__DASHBOARD_PORT"),
    ]
    holders: list[tuple[PortHolder, str]] = []
    for host, port, variable in wanted:
        holder = port_holder(host, port)
        if holder is not None and holder.pid not in ours:
            holders.append((holder, variable))
    if holders:
        lines = "\n".join(f"{holder}; stop it, or choose another with {variable}" for holder, variable in holders)
        raise ClusterError(f"nothing was started:\n{lines}")


def _stop_everything(layout: Layout) -> set[int]:
    """The watcher first, or it would bring back what we end; then who works, then Ray, the stores last."""
    seen: set[int] = set()

    def of_parts(wanted: Callable[[str], bool]) -> list[psutil.Process]:
        processes = [process for process in marked(layout.id) if wanted(part_of(process))]
        seen.update(process.pid for process in processes)
        return processes

    stop(lambda: of_parts(lambda part: part == "watcher"), _WATCHER_GRACE_S)
    ask_to_end([process for process in of_parts(lambda part: part == "node") if _works(process)], _WORKER_GRACE_S)
    # Ray's own processes keep nothing that outlives the cluster, and take seconds to say goodbye to each other.
    kill(lambda: of_parts(lambda part: part not in _STORES))
    left = stop(lambda: of_parts(lambda _: True), _STORE_GRACE_S)
    if left:
        raise ClusterError(f"processes that do not end: {', '.join(str(process.pid) for process in left)}")
    return seen


def _works(process: psutil.Process) -> bool:
    """Whether it is a replica, a worker or a driver, which may have something to write before it ends."""
    try:
        return process.name() not in _RAY_PROCESSES
    except psutil.NoSuchProcess:
        return False


def _tidy(layout: Layout) -> None:
    """Keep the ports for the next start and Ray's last logs; remove what described running processes."""
    state = read_state(layout.state_file)
    if state is not None:
        write_whole(layout.state_file, state.model_copy(update={"parts": {}}).model_dump_json(indent=1))
    _keep_ray_logs(layout)
    layout.watcher_file.unlink(missing_ok=True)
    shutil.rmtree(layout.short, ignore_errors=True)


def _keep_ray_logs(layout: Layout) -> None:
    last = next(layout.ray_dir.glob("session_2*/logs"), None)
    if last is not None:
        kept = layout.logs / "ray"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.move(last, kept)


@contextlib.contextmanager
def _one_command(layout: Layout) -> Iterator[None]:
    """One `up` or `down` at a time; a second one waits for the first."""
    with layout.command_lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
